# OnsideTls: throwaway certificate authorities and server certificates.
#
# A certificate of a test has to be expired, for another host or of somebody
# whom nobody trusts, on demand.  All of it is made by the openssl command, in a
# temporary directory that goes away with the test.  "openssl ca" is what makes
# the certificates, because it alone takes dates in every version that is about.
#
#   plan skip_all => 'openssl is not installed' unless OnsideTls::available();
#
#   my $tls = OnsideTls->new;
#   my $ca = $tls->authority('good');
#   my ($cert, $key) = $tls->certificate($ca);                  # for localhost
#   ($cert, $key) = $tls->certificate($ca, expired => 1);
#   ($cert, $key) = $tls->certificate($ca, host => 'elsewhere.test');
#   my $sandbox = OnsideSandbox->start(tls_cert => $cert, tls_key => $key);
#   # onside_attribution.ca_file = $ca->{cert}

package OnsideTls;

use strict;
use warnings;

use File::Spec ();
use File::Temp ();
use IPC::Run   ();
use POSIX      ();

# available
# Is there an openssl command?
sub available
{
	my $out = '';
	return eval { IPC::Run::run([ 'openssl', 'version' ], '>', \$out, '2>', \$out) };
}

# OnsideTls->new
sub new
{
	my ($class) = @_;
	return bless { dir => File::Temp::tempdir(CLEANUP => 1), made => 0 }, $class;
}

# authority($name)
# Makes a self-signed authority of that common name.  Returns a hash reference;
# its cert is a file that can be trusted.
sub authority
{
	my ($self, $name) = @_;
	my $base = $self->_path(++$self->{made} . "-$name");
	my $ca = { name => $name, cert => "$base.crt", key => "$base.key", base => $base };

	_write("$base.index", '');
	_write("$base.index.attr", "unique_subject = no\n");
	_write("$base.serial", "1000\n");
	_write("$base.cnf", <<CNF);
[ca]
default_ca = this
[this]
database = $base.index
serial = $base.serial
new_certs_dir = $self->{dir}
default_md = sha256
policy = any
copy_extensions = none
[any]
commonName = supplied
[req]
distinguished_name = name
prompt = no
x509_extensions = authority
[name]
CN = Throwaway authority $name
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
CNF
	$self->_key($ca->{key});
	_openssl('req', '-x509', '-new', '-config', "$base.cnf", '-key', $ca->{key},
		'-days', '30', '-out', $ca->{cert});
	return $ca;
}

# certificate($ca, %options)
# Makes a server's certificate, signed by that authority, and returns its file
# and that of its key.  It is for localhost, 127.0.0.1 and ::1, unless host
# names another host; with expired it was good until yesterday.
sub certificate
{
	my ($self, $ca, %options) = @_;
	my $base = $self->_path(++$self->{made} . '-server');
	my $host = $options{host} // 'localhost';
	my $names = $options{host} ? "DNS:$host" : 'DNS:localhost, IP:127.0.0.1, IP:::1';
	my $day = 24 * 3600;
	my ($from, $until) =
	  $options{expired} ? (-10 * $day, -1 * $day) : (-1 * $day, 30 * $day);

	_write("$base.cnf", <<CNF);
[req]
distinguished_name = name
prompt = no
[name]
CN = $host
[server]
basicConstraints = CA:FALSE
keyUsage = digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = $names
CNF
	$self->_key("$base.key");
	_openssl('req', '-new', '-config', "$base.cnf", '-key', "$base.key", '-out', "$base.csr");
	_openssl('ca', '-batch', '-notext', '-config', "$ca->{base}.cnf",
		'-cert', $ca->{cert}, '-keyfile', $ca->{key},
		'-extfile', "$base.cnf", '-extensions', 'server',
		'-startdate', _date($from), '-enddate', _date($until),
		'-in', "$base.csr", '-out', "$base.crt");
	return ("$base.crt", "$base.key");
}

# ---------------------------------------------------------------------------

sub _path
{
	my ($self, $name) = @_;
	return File::Spec->catfile($self->{dir}, $name);
}

sub _key
{
	my ($self, $file) = @_;
	_openssl('ecparam', '-name', 'prime256v1', '-genkey', '-noout', '-out', $file);
	chmod(0600, $file) or die "could not chmod $file: $!";
	return;
}

sub _date
{
	my ($from_now) = @_;
	return POSIX::strftime('%Y%m%d%H%M%SZ', gmtime(time() + $from_now));
}

sub _write
{
	my ($file, $content) = @_;
	open(my $fh, '>', $file) or die "could not write $file: $!";
	print $fh $content;
	close($fh) or die "could not write $file: $!";
	return;
}

sub _openssl
{
	my (@arguments) = @_;
	my $out = '';
	IPC::Run::run([ 'openssl', @arguments ], '<', File::Spec->devnull,
		'>', \$out, '2>', \$out)
	  or die "openssl @arguments failed:\n$out";
	return;
}

1;
