/* nftables, the legacy tables of iptables and ebtables, ip sets, IPVS, connection tracking. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/genetlink.h>
#include <linux/netfilter.h>
#include <linux/netfilter/ipset/ip_set.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <linux/netfilter/nfnetlink_log.h>
#include <linux/netfilter/nfnetlink_queue.h>
#include <linux/netfilter_bridge/ebtables.h>
#include <linux/netfilter_ipv4/ip_tables.h>
#include <linux/netfilter_ipv6/ip6_tables.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "netlink.h"

static void begin(struct request *request, int subsystem, int message, int flags, int family,
		  int resource)
{
	struct nfgenmsg header = { .nfgen_family = family, .res_id = htons(resource) };

	request_begin(request, subsystem << 8 | message, flags, &header, sizeof(header));
}

/* A transaction that makes a table, a base chain in it and a rule of one bare expression. */
static int add_rule(int family, const char *chain_type, const char *expression)
{
	struct request request = { .length = 0 };
	size_t nest, element;

	begin(&request, 0, NFNL_MSG_BATCH_BEGIN, 0, AF_UNSPEC, NFNL_SUBSYS_NFTABLES);
	begin(&request, NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWTABLE, NLM_F_CREATE, family, 0);
	request_put_string(&request, NFTA_TABLE_NAME, "check");
	begin(&request, NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWCHAIN,
	      NLM_F_CREATE | (expression ? 0 : NLM_F_ACK), family, 0);
	request_put_string(&request, NFTA_CHAIN_TABLE, "check");
	request_put_string(&request, NFTA_CHAIN_NAME, "check");
	request_put_string(&request, NFTA_CHAIN_TYPE, chain_type);
	nest = request_nest(&request, NFTA_CHAIN_HOOK);
	request_put_u32(&request, NFTA_HOOK_HOOKNUM,
			htonl(family == NFPROTO_ARP ? 0 : NF_INET_LOCAL_OUT));
	request_put_u32(&request, NFTA_HOOK_PRIORITY, htonl(0));
	request_end_nest(&request, nest);
	if (expression) {
		begin(&request, NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_ACK,
		      family, 0);
		request_put_string(&request, NFTA_RULE_TABLE, "check");
		request_put_string(&request, NFTA_RULE_CHAIN, "check");
		nest = request_nest(&request, NFTA_RULE_EXPRESSIONS);
		element = request_nest(&request, NFTA_LIST_ELEM);
		request_put_string(&request, NFTA_EXPR_NAME, expression);
		request_end_nest(&request, element);
		request_end_nest(&request, nest);
	}
	begin(&request, 0, NFNL_MSG_BATCH_END, 0, AF_UNSPEC, NFNL_SUBSYS_NFTABLES);
	return request_send(NETLINK_NETFILTER, &request);
}

struct chain {
	int family;
	const char *type;
};

static const char *nft_chain(const void *argument)
{
	const struct chain *chain = argument;
	int error;

	TRY(unshare(CLONE_NEWNET));
	error = add_rule(chain->family, chain->type, NULL);
	return error ? fail("transaction: %s", strerror(-error)) : NULL;
}

/* Without its options an expression is refused, but only an unknown one with ENOENT. */
static const char *nft_expression(const void *name)
{
	int error;

	TRY(unshare(CLONE_NEWNET));
	error = add_rule(NFPROTO_INET, "filter", name);
	return error == -ENOENT || error == -ETIMEDOUT ? strerror(-error) : NULL;
}

static const char *iptables_table(const void *name)
{
	struct ipt_getinfo info = { 0 };
	socklen_t size = sizeof(info);

	strcpy(info.name, name);
	TRY(getsockopt(socket(AF_INET, SOCK_RAW, IPPROTO_RAW), SOL_IP, IPT_SO_GET_INFO, &info, &size));
	return NULL;
}

static const char *ip6tables_table(const void *name)
{
	struct ip6t_getinfo info = { 0 };
	socklen_t size = sizeof(info);

	strcpy(info.name, name);
	TRY(getsockopt(socket(AF_INET6, SOCK_RAW, IPPROTO_RAW), SOL_IPV6, IP6T_SO_GET_INFO, &info,
		       &size));
	return NULL;
}

static const char *ebtables_table(const void *name)
{
	struct ebt_replace info = { 0 };
	socklen_t size = sizeof(info);

	strcpy(info.name, name);
	TRY(getsockopt(socket(AF_INET, SOCK_RAW, IPPROTO_RAW), SOL_IP, EBT_SO_GET_INFO, &info, &size));
	return NULL;
}

/* The revision may be refused; ENOENT alone means that no extension has the name. */
static const char *extensions(int option, const char *const *names)
{
	int fd = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
	char missing[256] = "";

	TRY(fd);
	for (; *names; names++) {
		struct xt_get_revision revision = { 0 };
		socklen_t size = sizeof(revision);

		strcpy(revision.name, *names);
		if (getsockopt(fd, SOL_IP, option, &revision, &size) < 0 && errno == ENOENT) {
			strcat(missing, " ");
			strcat(missing, *names);
		}
	}
	return missing[0] ? fail("missing:%s", missing) : NULL;
}

static const char *matches(const void *names)
{
	return extensions(IPT_SO_GET_REVISION_MATCH, names);
}

static const char *targets(const void *names)
{
	return extensions(IPT_SO_GET_REVISION_TARGET, names);
}

static const char *ip_set_type(const void *name)
{
	struct request request = { .length = 0 };
	int error;

	begin(&request, NFNL_SUBSYS_IPSET, IPSET_CMD_TYPE, NLM_F_ACK, AF_INET, 0);
	request_put(&request, IPSET_ATTR_PROTOCOL, &(char){ IPSET_PROTOCOL }, 1);
	request_put_string(&request, IPSET_ATTR_TYPENAME, name);
	request_put(&request, IPSET_ATTR_FAMILY, &(char){ NFPROTO_IPV4 }, 1);
	error = request_send(NETLINK_NETFILTER, &request);
	return error ? fail("error %d", error) : NULL;
}

static const char *ipvs(const void *unused)
{
	struct request request = { .length = 0 };
	struct genlmsghdr header = { .cmd = CTRL_CMD_GETFAMILY, .version = 1 };
	int error;

	request_begin(&request, GENL_ID_CTRL, NLM_F_ACK, &header, sizeof(header));
	request_put_string(&request, CTRL_ATTR_FAMILY_NAME, "IPVS");
	error = request_send(NETLINK_GENERIC, &request);
	return error ? strerror(-error) : NULL;
}

static const char *connection_tracking(const void *unused)
{
	struct request request = { .length = 0 };
	int error;

	begin(&request, NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET, NLM_F_DUMP, AF_INET, 0);
	error = request_send(NETLINK_NETFILTER, &request);
	if (!error && access("/proc/net/nf_conntrack", F_OK))
		return "no /proc/net/nf_conntrack";
	return error ? strerror(-error) : NULL;
}

static const char *queue_to_programs(const void *unused)
{
	struct request request = { .length = 0 };
	struct nfqnl_msg_config_cmd command = { .command = NFQNL_CFG_CMD_BIND };
	int error;

	begin(&request, NFNL_SUBSYS_QUEUE, NFQNL_MSG_CONFIG, NLM_F_ACK, AF_UNSPEC, 0);
	request_put(&request, NFQA_CFG_CMD, &command, sizeof(command));
	error = request_send(NETLINK_NETFILTER, &request);
	return error ? strerror(-error) : NULL;
}

static const char *log_to_programs(const void *unused)
{
	struct request request = { .length = 0 };
	struct nfulnl_msg_config_cmd command = { .command = NFULNL_CFG_CMD_BIND };
	int error;

	begin(&request, NFNL_SUBSYS_ULOG, NFULNL_MSG_CONFIG, NLM_F_ACK, AF_UNSPEC, 0);
	request_put(&request, NFULA_CFG_CMD, &command, sizeof(command));
	error = request_send(NETLINK_NETFILTER, &request);
	return error ? strerror(-error) : NULL;
}

#define CHAIN(family, type) &(const struct chain){ family, type }
#define NAMES(...) (const char *const[]){ __VA_ARGS__, NULL }

const struct check netfilter_checks[] = {
	{ "nftables: filter in inet", nft_chain, CHAIN(NFPROTO_INET, "filter") },
	{ "nftables: nat in inet", nft_chain, CHAIN(NFPROTO_INET, "nat") },
	{ "nftables: nat in ip", nft_chain, CHAIN(NFPROTO_IPV4, "nat") },
	{ "nftables: nat in ip6", nft_chain, CHAIN(NFPROTO_IPV6, "nat") },
	{ "nftables: route in ip", nft_chain, CHAIN(NFPROTO_IPV4, "route") },
	{ "nftables: filter in arp", nft_chain, CHAIN(NFPROTO_ARP, "filter") },
	{ "nftables: filter in bridge", nft_chain, CHAIN(NFPROTO_BRIDGE, "filter") },
	{ "nftables: ct", nft_expression, "ct" },
	{ "nftables: connlimit", nft_expression, "connlimit" },
	{ "nftables: counter", nft_expression, "counter" },
	{ "nftables: dynset", nft_expression, "dynset" },
	{ "nftables: fib", nft_expression, "fib" },
	{ "nftables: hash", nft_expression, "hash" },
	{ "nftables: limit", nft_expression, "limit" },
	{ "nftables: log", nft_expression, "log" },
	{ "nftables: lookup", nft_expression, "lookup" },
	{ "nftables: masq", nft_expression, "masq" },
	{ "nftables: match (iptables-nft)", nft_expression, "match" },
	{ "nftables: nat", nft_expression, "nat" },
	{ "nftables: numgen", nft_expression, "numgen" },
	{ "nftables: queue", nft_expression, "queue" },
	{ "nftables: quota", nft_expression, "quota" },
	{ "nftables: redir", nft_expression, "redir" },
	{ "nftables: reject", nft_expression, "reject" },
	{ "nftables: socket", nft_expression, "socket" },
	{ "nftables: target (iptables-nft)", nft_expression, "target" },
	{ "nftables: tproxy", nft_expression, "tproxy" },
	{ "iptables: filter", iptables_table, "filter" },
	{ "iptables: nat", iptables_table, "nat" },
	{ "iptables: mangle", iptables_table, "mangle" },
	{ "iptables: raw", iptables_table, "raw" },
	{ "ip6tables: filter", ip6tables_table, "filter" },
	{ "ip6tables: nat", ip6tables_table, "nat" },
	{ "ip6tables: mangle", ip6tables_table, "mangle" },
	{ "ip6tables: raw", ip6tables_table, "raw" },
	{ "ebtables: filter", ebtables_table, "filter" },
	{ "ebtables: nat", ebtables_table, "nat" },
	{ "iptables: matches", matches,
	  NAMES("addrtype", "bpf", "comment", "connlimit", "connmark", "conntrack", "hashlimit",
		"iprange", "ipvs", "length", "limit", "mac", "mark", "multiport", "owner",
		"physdev", "pkttype", "recent", "rpfilter", "set", "socket", "state",
		"statistic", "string", "tcpmss", "time", "u32") },
	{ "iptables: targets", targets,
	  NAMES("CHECKSUM", "CLASSIFY", "CONNMARK", "CT", "DNAT", "DSCP", "LOG", "MARK",
		"MASQUERADE", "NETMAP", "NFLOG", "NFQUEUE", "REDIRECT", "REJECT", "SET", "SNAT",
		"TCPMSS", "TPROXY", "TRACE") },
	{ "ip set: hash:ip", ip_set_type, "hash:ip" },
	{ "ip set: hash:ip,port", ip_set_type, "hash:ip,port" },
	{ "ip set: hash:ip,port,ip", ip_set_type, "hash:ip,port,ip" },
	{ "ip set: hash:ip,port,net", ip_set_type, "hash:ip,port,net" },
	{ "ip set: hash:net", ip_set_type, "hash:net" },
	{ "ip set: hash:net,port", ip_set_type, "hash:net,port" },
	{ "ip set: bitmap:port", ip_set_type, "bitmap:port" },
	{ "ip set: list:set", ip_set_type, "list:set" },
	{ "IPVS", ipvs },
	{ "connection tracking", connection_tracking },
	{ "connection tracking: events", exists, "/proc/sys/net/netfilter/nf_conntrack_events" },
	{ "connection tracking: FTP", exists, "/sys/module/nf_conntrack_ftp" },
	{ "connection tracking: TFTP", exists, "/sys/module/nf_conntrack_tftp" },
	{ "packets queued to programs", queue_to_programs },
	{ "packets logged to programs", log_to_programs },
	{ "bridged packets pass the tables", exists,
	  "/proc/sys/net/bridge/bridge-nf-call-iptables" },
	{ 0 },
};
