/* Protocols, sockets, network devices, routing rules and traffic control. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fib_rules.h>
#include <linux/genetlink.h>
#include <linux/if_ether.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/inet_diag.h>
#include <linux/pkt_cls.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "netlink.h"

static const char *answer(const char *what, int error)
{
	return error ? fail("%s: %s", what, strerror(-error)) : NULL;
}

/* With lower, the device is made on top of that one; with id, it has VXLAN's or VLAN's id. */
static int add_link(const char *kind, const char *name, int lower, int id_type, unsigned id)
{
	struct request request = { .length = 0 };
	struct ifinfomsg header = { .ifi_family = AF_UNSPEC };
	size_t info, data;

	request_begin(&request, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK, &header,
		      sizeof(header));
	request_put_string(&request, IFLA_IFNAME, name);
	if (lower)
		request_put_u32(&request, IFLA_LINK, lower);
	info = request_nest(&request, IFLA_LINKINFO);
	request_put_string(&request, IFLA_INFO_KIND, kind);
	if (id_type) {
		data = request_nest(&request, IFLA_INFO_DATA);
		if (strcmp(kind, "vlan") == 0)
			request_put(&request, id_type, &(unsigned short){ id }, 2);
		else
			request_put_u32(&request, id_type, id);
		request_end_nest(&request, data);
	}
	request_end_nest(&request, info);
	return request_send(NETLINK_ROUTE, &request);
}

static const char *private_network(void)
{
	TRY(unshare(CLONE_NEWNET));
	return answer("a dummy device", add_link("dummy", "dummy0", 0, 0, 0));
}

struct link {
	const char *kind;
	bool on_dummy;
	int id_type, id;
};

static const char *link_kind(const void *argument)
{
	const struct link *link = argument;
	const char *why = private_network();

	if (why)
		return why;
	return answer("RTM_NEWLINK", add_link(link->kind, "check0",
					      link->on_dummy ? if_nametoindex("dummy0") : 0,
					      link->id_type, link->id));
}

static const char *tun_device(const void *flags)
{
	struct ifreq request = { .ifr_flags = *(const short *)flags };

	TRY(ioctl(open("/dev/net/tun", O_RDWR), TUNSETIFF, &request));
	return NULL;
}

struct protocol {
	int family, type, protocol;
};

static const char *socket_type(const void *argument)
{
	const struct protocol *protocol = argument;

	TRY(socket(protocol->family, protocol->type, protocol->protocol));
	return NULL;
}

static const char *ipv6_loopback(const void *unused)
{
	struct sockaddr_in6 address = { .sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT };
	struct ifreq request = { .ifr_name = "lo", .ifr_flags = IFF_UP };
	int fd = socket(AF_INET6, SOCK_STREAM, 0);

	TRY(fd);
	TRY(ioctl(fd, SIOCSIFFLAGS, &request));
	TRY(bind(fd, (void *)&address, sizeof(address)));
	return NULL;
}

static const char *congestion_control(const void *name)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	TRY(setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, strlen(name)));
	return NULL;
}

/* ENOTCONN is what an unconnected socket gets where the protocol is there. */
static const char *kernel_tls(const void *unused)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	setsockopt(fd, IPPROTO_TCP, TCP_ULP, "tls", 3);
	return errno == ENOTCONN ? NULL : fail_errno("TCP_ULP");
}

static const char *socket_diagnosis(const void *argument)
{
	const struct protocol *protocol = argument;
	struct request request = { .length = 0 };
	struct inet_diag_req_v2 header = { .sdiag_family = protocol->family,
					   .sdiag_protocol = protocol->protocol };
	char any_family[64] = { 0 };

	memcpy(any_family, &header, sizeof(header));
	request_begin(&request, SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, any_family,
		      protocol->family == AF_INET ? sizeof(header) : 32);
	return answer("SOCK_DIAG_BY_FAMILY", request_send(NETLINK_SOCK_DIAG, &request));
}

static const char *routing_rule(const void *family)
{
	struct request request = { .length = 0 };
	struct fib_rule_hdr header = { .family = *(const int *)family, .table = 100,
				       .action = FR_ACT_TO_TBL };

	request_begin(&request, RTM_NEWRULE, NLM_F_CREATE | NLM_F_ACK, &header, sizeof(header));
	request_put_u32(&request, FRA_FWMARK, 7);
	return answer("RTM_NEWRULE", request_send(NETLINK_ROUTE, &request));
}

/*
 * Kinds that need options answer EINVAL without them; an unknown kind, and only that, answers
 * ENOENT.
 */
static const char *known_kind(const char *what, int error)
{
	return error == -ENOENT ? fail("%s: unknown kind", what) : NULL;
}

static int add_qdisc(const char *kind, unsigned parent, unsigned handle)
{
	struct request request = { .length = 0 };
	struct tcmsg header = { .tcm_ifindex = if_nametoindex("dummy0"), .tcm_parent = parent,
				.tcm_handle = handle };

	request_begin(&request, RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK, &header,
		      sizeof(header));
	request_put_string(&request, TCA_KIND, kind);
	return request_send(NETLINK_ROUTE, &request);
}

static const char *queueing(const void *kind)
{
	const char *why = private_network();
	bool ingress = strcmp(kind, "ingress") == 0 || strcmp(kind, "clsact") == 0;

	return why ? why : known_kind("RTM_NEWQDISC",
				      add_qdisc(kind, ingress ? TC_H_INGRESS : TC_H_ROOT, 0));
}

static const char *classifier(const void *kind)
{
	struct request request = { .length = 0 };
	struct tcmsg header = { .tcm_parent = TC_H_MAKE(TC_H_INGRESS, 0),
				.tcm_info = TC_H_MAKE(1 << 16, __builtin_bswap16(ETH_P_ALL)) };
	const char *why = private_network();

	if (why)
		return why;
	if ((why = answer("ingress", add_qdisc("ingress", TC_H_INGRESS, 0))))
		return why;
	header.tcm_ifindex = if_nametoindex("dummy0");
	header.tcm_parent = 0xffff0000;
	request_begin(&request, RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_ACK, &header, sizeof(header));
	request_put_string(&request, TCA_KIND, kind);
	return known_kind("RTM_NEWTFILTER", request_send(NETLINK_ROUTE, &request));
}

static const char *action(const void *kind)
{
	struct request request = { .length = 0 };
	struct tcamsg header = { 0 };
	size_t list, first;

	request_begin(&request, RTM_NEWACTION, NLM_F_CREATE | NLM_F_ACK, &header, sizeof(header));
	list = request_nest(&request, TCA_ACT_TAB);
	first = request_nest(&request, 1);
	request_put_string(&request, TCA_ACT_KIND, kind);
	request_end_nest(&request, first);
	request_end_nest(&request, list);
	return known_kind("RTM_NEWACTION", request_send(NETLINK_ROUTE, &request));
}

static const char *generic_family(const void *name)
{
	struct request request = { .length = 0 };
	struct genlmsghdr header = { .cmd = CTRL_CMD_GETFAMILY, .version = 1 };

	request_begin(&request, GENL_ID_CTRL, NLM_F_ACK, &header, sizeof(header));
	request_put_string(&request, CTRL_ATTR_FAMILY_NAME, name);
	return answer("CTRL_CMD_GETFAMILY", request_send(NETLINK_GENERIC, &request));
}

#define LINK(...) &(const struct link){ __VA_ARGS__ }
#define SOCKET(...) &(const struct protocol){ __VA_ARGS__ }

const struct check network_checks[] = {
	{ "socket: TCP over IPv6 loopback", ipv6_loopback },
	{ "socket: Unix", socket_type, SOCKET(AF_UNIX, SOCK_SEQPACKET) },
	{ "socket: packet", socket_type, SOCKET(AF_PACKET, SOCK_RAW, 0x300) },
	{ "socket: raw", socket_type, SOCKET(AF_INET, SOCK_RAW, IPPROTO_ICMP) },
	{ "IPv4 multicast", exists, "/proc/net/igmp" },
	{ "multipath routes", exists, "/proc/sys/net/ipv4/fib_multipath_hash_policy" },
	{ "SYN cookies", holds, WORD("/proc/sys/net/ipv4/tcp_syncookies", "1") },
	{ "congestion control: cubic", congestion_control, "cubic" },
	{ "congestion control: bbr", congestion_control, "bbr" },
	{ "kernel TLS", kernel_tls },
	{ "diagnosis: TCP", socket_diagnosis, SOCKET(AF_INET, 0, IPPROTO_TCP) },
	{ "diagnosis: UDP", socket_diagnosis, SOCKET(AF_INET, 0, IPPROTO_UDP) },
	{ "diagnosis: raw", socket_diagnosis, SOCKET(AF_INET, 0, IPPROTO_RAW) },
	{ "diagnosis: Unix", socket_diagnosis, SOCKET(AF_UNIX) },
	{ "diagnosis: packet", socket_diagnosis, SOCKET(AF_PACKET) },
	{ "diagnosis: netlink", socket_diagnosis, SOCKET(AF_NETLINK) },
	{ "diagnosis: vsock", socket_diagnosis, SOCKET(AF_VSOCK) },
	{ "device: veth", link_kind, LINK("veth") },
	{ "device: bridge", link_kind, LINK("bridge") },
	{ "device: ifb", link_kind, LINK("ifb") },
	{ "device: macvlan", link_kind, LINK("macvlan", true) },
	{ "device: macvtap", link_kind, LINK("macvtap", true) },
	{ "device: ipvlan", link_kind, LINK("ipvlan", true) },
	{ "device: vlan", link_kind, LINK("vlan", true, IFLA_VLAN_ID, 5) },
	{ "device: vxlan", link_kind, LINK("vxlan", false, IFLA_VXLAN_ID, 5) },
	{ "device: geneve", link_kind, LINK("geneve", false, IFLA_GENEVE_ID, 5) },
	{ "device: wireguard", link_kind, LINK("wireguard") },
	{ "device: tun", tun_device, &(const short){ IFF_TUN | IFF_NO_PI } },
	{ "device: tap", tun_device, &(const short){ IFF_TAP | IFF_NO_PI | IFF_VNET_HDR } },
	{ "routing rule: IPv4", routing_rule, &(const int){ AF_INET } },
	{ "routing rule: IPv6", routing_rule, &(const int){ AF_INET6 } },
	{ "queueing: fq_codel is the default", holds,
	  WORD("/proc/sys/net/core/default_qdisc", "fq_codel") },
	{ "queueing: fq", queueing, "fq" },
	{ "queueing: sfq", queueing, "sfq" },
	{ "queueing: htb", queueing, "htb" },
	{ "queueing: tbf", queueing, "tbf" },
	{ "queueing: prio", queueing, "prio" },
	{ "queueing: netem", queueing, "netem" },
	{ "queueing: ingress", queueing, "ingress" },
	{ "queueing: clsact", queueing, "clsact" },
	{ "classifier: u32", classifier, "u32" },
	{ "classifier: matchall", classifier, "matchall" },
	{ "classifier: basic", classifier, "basic" },
	{ "classifier: fw", classifier, "fw" },
	{ "classifier: flower", classifier, "flower" },
	{ "classifier: bpf", classifier, "bpf" },
	{ "action: mirred", action, "mirred" },
	{ "action: police", action, "police" },
	{ "action: gact", action, "gact" },
	{ "action: skbedit", action, "skbedit" },
	{ "action: bpf", action, "bpf" },
	{ "generic netlink: wireguard", generic_family, "wireguard" },
	{ "generic netlink: task statistics", generic_family, "TASKSTATS" },
	{ "generic netlink: ethtool", generic_family, "ethtool" },
	{ "generic netlink: quota", generic_family, "VFS_DQUOT" },
	{ 0 },
};
