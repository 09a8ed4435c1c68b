/*-------------------------------------------------------------------------
 *
 * fuzz_response.c
 *	  libFuzzer harness for what reads the peer's header values.
 *
 *		I=$(pg_config --includedir-server)
 *		clang -g -O1 -fsanitize=fuzzer,address,undefined \
 *			-fno-sanitize-recover=undefined -isystem $I -Isrc \
 *			test/fuzz/fuzz_response.c src/send/response.c -o fuzz_response
 *		./fuzz_response -max_total_time=60
 *
 * Each input is a clock (8 bytes), a status (2 bytes) and, split at the first
 * line feed, a Retry-After and a Date.  Both are copied into blocks of exactly
 * their size, so that a byte read too far is seen.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "send/response.h"

/* postgres.h points these at the server's own */
#undef printf
#undef fprintf
#undef snprintf

extern int	LLVMFuzzerTestOneInput(const uint8 *data, size_t size);

#define CHECK(condition) \
	do { if (!(condition)) __builtin_trap(); } while (0)

static char *
copy_of(const uint8 *data, size_t size)
{
	char	   *copy = malloc(size == 0 ? 1 : size);

	CHECK(copy != NULL);
	if (size > 0)
		memcpy(copy, data, size);
	return copy;
}

int
LLVMFuzzerTestOneInput(const uint8 *data, size_t size)
{
	int64		now_ms = 0;
	int64		epoch_s;
	int64		wait_ms;
	uint16		status = 0;
	const uint8 *split;
	size_t		retry_after_len;
	size_t		date_len;
	char	   *retry_after;
	char	   *date;
	OnsideResponseClass response_class;

	if (size < sizeof(now_ms) + sizeof(status))
		return 0;
	memcpy(&now_ms, data, sizeof(now_ms));
	data += sizeof(now_ms);
	memcpy(&status, data, sizeof(status));
	data += sizeof(status);
	size -= sizeof(now_ms) + sizeof(status);

	split = size == 0 ? NULL : memchr(data, '\n', size);
	retry_after_len = split == NULL ? size : (size_t) (split - data);
	date_len = split == NULL ? 0 : size - retry_after_len - 1;
	retry_after = copy_of(data, retry_after_len);
	date = split == NULL ? NULL : copy_of(split + 1, date_len);

	wait_ms = onside_retry_after_ms(retry_after, retry_after_len,
									date, date_len, now_ms);
	CHECK(wait_ms >= 0 && wait_ms <= ONSIDE_RETRY_AFTER_MAX_MS);

	/* years 0 to 9999, and not before the first of them */
	if (onside_http_date_parse(retry_after, retry_after_len, now_ms, &epoch_s))
		CHECK(epoch_s < INT64CONST(2000000000000) &&
			  epoch_s > INT64CONST(-2000000000000));

	response_class = onside_response_classify((int16) status, false,
											  wait_ms > 0);
	CHECK((response_class == ONSIDE_RESPONSE_DELIVERED) == (status == 204));
	CHECK(onside_response_class_name(response_class) != NULL);
	CHECK(onside_response_classify((int16) status, true, wait_ms > 0) ==
		  ONSIDE_RESPONSE_RETRY);

	free(retry_after);
	free(date);
	return 0;
}
