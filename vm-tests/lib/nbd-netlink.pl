# Attaches a kernel NBD device that waits for a lost server, and gives it new connections when the server is back:
# what the kernel can do and nbd-client (3.24) does not ask for.
#
#   perl nbd-netlink.pl connect   INDEX ADDRESS PORT EXPORT CONNECTIONS
#   perl nbd-netlink.pl reconnect INDEX ADDRESS PORT EXPORT CONNECTIONS
#
# Haggles with the server as nbd-client does, then hands the sockets to the kernel by NBD_CMD_CONNECT or
# NBD_CMD_RECONNECT of the "nbd" generic netlink family (include/uapi/linux/nbd-netlink.h). Needs nothing but perl-base.
use strict;
use warnings;
use Socket qw(inet_aton pack_sockaddr_in PF_INET SOCK_STREAM SOCK_RAW);

my ($what, $index, $address, $port, $export, $connections) = @ARGV;
my $REQUEST_TIMEOUT = 5;    # seconds until a request on a dead connection is sent on another one
my $DEAD_TIMEOUT = 60;      # seconds that the device waits for a new connection before its requests fail
my ($size, $flags) = (0, 0);

sub exactly {
    my ($socket, $count) = @_;
    my $bytes = '';
    while (length $bytes < $count) {
        my $got = sysread $socket, $bytes, $count - length $bytes, length $bytes;
        die "server closed the connection\n" unless $got;
    }
    return $bytes;
}

sub haggle {
    socket my $socket, PF_INET, SOCK_STREAM, 0 or die "socket: $!\n";
    connect $socket, pack_sockaddr_in($port, inet_aton($address)) or die "connect: $!\n";
    exactly($socket, 18) =~ /^NBDMAGICIHAVEOPT/ or die "not an NBD server\n";
    syswrite $socket, pack('N', 3) . 'IHAVEOPT' . pack('N N N/a* n', 7, length($export) + 6, $export, 0);
    while (1) {
        my (undef, undef, undef, $type, $length) = unpack 'N N N N N', exactly($socket, 20);
        my $data = $length ? exactly($socket, $length) : '';
        (undef, $size, $flags) = unpack 'n Q> n', $data if $type == 3 && unpack('n', $data) == 0;
        last if $type == 1;
        die "export refused: reply $type\n" if $type >= 2**31;
    }
    return $socket;
}

sub attribute { my ($type, $data) = @_; return pack('S S a*', 4 + length $data, $type, $data) . "\0" x (-length($data) & 3) }
sub message {
    my ($family, $command, $attributes) = @_;
    my $body = pack('C C S', $command, 1, 0) . $attributes;
    return pack('L S S L L', 16 + length $body, $family, 5, 1, 0) . $body;    # NLM_F_REQUEST | NLM_F_ACK
}

socket my $netlink, 16, SOCK_RAW, 16 or die "netlink: $!\n";    # AF_NETLINK, NETLINK_GENERIC
syswrite $netlink, message(0x10, 3, attribute(2, "nbd\0"));      # CTRL_CMD_GETFAMILY by CTRL_ATTR_FAMILY_NAME
sysread $netlink, my $reply, 65536;
my $family;
for (my $rest = substr $reply, 20; length $rest >= 4;) {
    my ($length, $type) = unpack 'S S', $rest;
    $family = unpack 'S', substr $rest, 4, 2 if $type == 1;       # CTRL_ATTR_FAMILY_ID
    last if $length < 4;
    $rest = substr $rest, ($length + 3) & ~3;
}
die "the kernel has no nbd family\n" unless $family;
sysread $netlink, $reply, 65536;                                  # the acknowledgement

my @sockets = map { haggle() } 1 .. $connections;
my $items = join '', map { attribute(1 | 0x8000, attribute(1, pack 'L', fileno $_)) } @sockets;
my $attributes = attribute(1, pack 'L', $index) . attribute(7 | 0x8000, $items);
$attributes .= attribute(2, pack 'Q', $size) . attribute(3, pack 'Q', 4096) . attribute(4, pack 'Q', $REQUEST_TIMEOUT)
    . attribute(5, pack 'Q', $flags) . attribute(8, pack 'Q', $DEAD_TIMEOUT)
    if $what eq 'connect';
syswrite $netlink, message($family, $what eq 'connect' ? 1 : 3, $attributes);
do { sysread $netlink, $reply, 65536 } while unpack('S', substr $reply, 4, 2) != 2;    # up to NLMSG_ERROR, also the ack
my ($error) = unpack 'l', substr $reply, 16, 4;
die "NBD_CMD_$what: error $error\n" if $error;
print "$what: $connections connections\n";
