/*-------------------------------------------------------------------------
 *
 * address.c
 *		Where requests may go.
 *
 * Without TLS, everybody on the way could read events and credentials, so
 * http:// is for loopback addresses alone.  settings.c asks here about an
 * address when it is set, the worker and doctor() before they use it.
 * request.c asks about each address that a socket is opened to.
 *
 * libcurl takes the addresses apart, since what counts is what libcurl will
 * make of them.  No setting holds a password: what has the form of a password
 * is refused, and what is wrong is said without repeating the value.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <curl/curl.h>

#include "send/address.h"

/* Of IPv4, all of 127.0.0.0/8 is loopback. */
bool
onside_address_is_loopback(const struct sockaddr *address)
{
	if (address->sa_family == AF_INET)
	{
		struct sockaddr_in v4;

		/* The caller's struct need not be aligned for it. */
		memcpy(&v4, address, sizeof(v4));
		return (ntohl(v4.sin_addr.s_addr) >> 24) == 127;
	}
	if (address->sa_family == AF_INET6)
	{
		struct sockaddr_in6 v6;

		memcpy(&v6, address, sizeof(v6));
		return IN6_IS_ADDR_LOOPBACK(&v6.sin6_addr);
	}
	return false;
}

/*
 * Does a host's name or address, as libcurl has parsed it, mean this machine?
 * Any name but "localhost" could lead elsewhere.
 */
static bool
is_loopback(const char *host)
{
	struct in_addr v4;
	struct in6_addr v6;
	char		bare[INET6_ADDRSTRLEN];
	size_t		len = strlen(host);

	if (pg_strcasecmp(host, "localhost") == 0)
		return true;
	if (inet_pton(AF_INET, host, &v4) == 1)
		return (ntohl(v4.s_addr) >> 24) == 127;

	/* libcurl gives an IPv6 address in its brackets */
	if (len > 2 && len - 2 < sizeof(bare) &&
		host[0] == '[' && host[len - 1] == ']')
	{
		memcpy(bare, host + 1, len - 2);
		bare[len - 2] = '\0';
		if (inet_pton(AF_INET6, bare, &v6) == 1)
			return IN6_IS_ADDR_LOOPBACK(&v6);
	}
	return false;
}

/*
 * Older versions of libcurl let them pass, and they could end up in a header.
 */
static bool
has_control_characters(const char *str)
{
	for (const unsigned char *p = (const unsigned char *) str; *p != '\0'; p++)
		if (*p < 0x20 || *p == 0x7f)
			return true;
	return false;
}

/*
 * libcurl parses the URL, and libcurl sends: so the URL cannot mean one host
 * here and another one there.
 */
const char *
onside_address_endpoint_problem(const char *url)
{
	const char *problem = NULL;
	CURLU	   *parsed = curl_url();
	char	   *scheme = NULL;
	char	   *host = NULL;
	char	   *part = NULL;

	if (parsed == NULL)
		return "Out of memory.";

	/* Is it a URL, and which parts has it? */
	if (strcmp(url, ONSIDE_REFUSED_VALUE) == 0)
		problem = ONSIDE_REFUSED_PROBLEM;
	else if (has_control_characters(url) ||
		curl_url_set(parsed, CURLUPART_URL, url, 0) != CURLUE_OK ||
		curl_url_get(parsed, CURLUPART_SCHEME, &scheme, 0) != CURLUE_OK ||
		curl_url_get(parsed, CURLUPART_HOST, &host, 0) != CURLUE_OK)
		problem = "This is not a URL.";
	else if (curl_url_get(parsed, CURLUPART_USER, &part, 0) == CURLUE_OK ||
			 curl_url_get(parsed, CURLUPART_PASSWORD, &part, 0) == CURLUE_OK)
		problem = "The URL must not contain a user or password; they belong into credentials_file.";
	else if (strcmp(scheme, "https") == 0)
		problem = NULL;			/* to any host */
	else if (strcmp(scheme, "http") != 0)
		problem = "The scheme must be https.";
	else if (!is_loopback(host))
		problem = "Without TLS, events and credentials are sent to loopback addresses alone.";

	curl_free(part);
	curl_free(host);
	curl_free(scheme);
	curl_url_cleanup(parsed);
	return problem;
}

/* Parses an address as libcurl parses a proxy: without a scheme it is http. */
static CURLU *
parse_proxy(const char *proxy)
{
	CURLU	   *parsed = curl_url();

	if (parsed != NULL &&
		(has_control_characters(proxy) ||
		 curl_url_set(parsed, CURLUPART_URL, proxy,
					  CURLU_NON_SUPPORT_SCHEME |
					  (strstr(proxy, "://") == NULL ?
					   CURLU_DEFAULT_SCHEME : 0)) != CURLUE_OK))
	{
		curl_url_cleanup(parsed);
		return NULL;
	}
	return parsed;
}

/*
 * libcurl's messages repeat a proxy that it does not understand, so such a
 * value must not get as far as that.  A proxy has a scheme, a host and a
 * port.  Anything else is refused, since it may be a password in an unusual
 * form.  For the same reason an '@' is refused wherever it is.
 */
const char *
onside_address_proxy_problem(const char *proxy)
{
	static const char *const schemes[] = {
		"http", "https", "socks4", "socks4a", "socks5", "socks5h"
	};
	CURLU	   *parsed;
	char	   *scheme = NULL;
	char	   *path = NULL;
	char	   *part = NULL;
	const char *problem = NULL;
	bool		known = false;

	if (proxy[0] == '\0')
		return NULL;
	if (strcmp(proxy, ONSIDE_REFUSED_VALUE) == 0)
		return ONSIDE_REFUSED_PROBLEM;
	if (strchr(proxy, '@') != NULL || strstr(proxy, "%40") != NULL)
		return "The address must not contain a user or password.";
	parsed = parse_proxy(proxy);
	if (parsed == NULL)
		return "This is not the address of a proxy.";

	/* Is it one of the schemes that libcurl knows for proxies? */
	if (curl_url_get(parsed, CURLUPART_SCHEME, &scheme, 0) == CURLUE_OK)
		for (int i = 0; i < (int) lengthof(schemes); i++)
			known |= strcmp(scheme, schemes[i]) == 0;
	if (!known)
		problem = "The scheme must be http, https, socks4, socks4a, socks5 or socks5h.";
	else if ((curl_url_get(parsed, CURLUPART_PATH, &path, 0) == CURLUE_OK &&
			  strcmp(path, "/") != 0) ||
			 curl_url_get(parsed, CURLUPART_QUERY, &part, 0) == CURLUE_OK ||
			 curl_url_get(parsed, CURLUPART_FRAGMENT, &part, 0) == CURLUE_OK)
		problem = "The address must end after host and port.";

	curl_free(part);
	curl_free(path);
	curl_free(scheme);
	curl_url_cleanup(parsed);
	return problem;
}
