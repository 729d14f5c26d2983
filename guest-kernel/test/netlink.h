/* Just enough of netlink: one request, its acknowledgement. */
#ifndef NETLINK_H
#define NETLINK_H

#include <linux/netlink.h>
#include <stddef.h>

struct request {
	char bytes[2048] __attribute__((aligned(NLMSG_ALIGNTO)));
	size_t start; /* of the message being built; a batch has several */
	size_t length;
};

/* Begins a message with a family header (ifinfomsg and the like) of that size. */
void request_begin(struct request *request, int type, int flags, const void *header, size_t size);
void request_put(struct request *request, int type, const void *data, size_t size);
void request_put_string(struct request *request, int type, const char *text);
void request_put_u32(struct request *request, int type, unsigned value);
size_t request_nest(struct request *request, int type);
void request_end_nest(struct request *request, size_t nest);

/* Sends it and waits for the answer: 0, or the negative error that the kernel acknowledged with. */
int request_send(int protocol, const struct request *request);

#endif
