#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "netlink.h"

static void append(struct request *request, const void *data, size_t size)
{
	memcpy(request->bytes + request->length, data, size);
	request->length = NLMSG_ALIGN(request->length + size);
	((struct nlmsghdr *)(request->bytes + request->start))->nlmsg_len =
		request->length - request->start;
}

void request_begin(struct request *request, int type, int flags, const void *header, size_t size)
{
	struct nlmsghdr message = { .nlmsg_type = type, .nlmsg_flags = NLM_F_REQUEST | flags,
				    .nlmsg_seq = 1 };

	request->start = request->length;
	append(request, &message, sizeof(message));
	append(request, header, size);
}

void request_put(struct request *request, int type, const void *data, size_t size)
{
	struct nlattr attribute = { .nla_len = NLA_HDRLEN + size, .nla_type = type };

	append(request, &attribute, sizeof(attribute));
	append(request, data, size);
}

void request_put_string(struct request *request, int type, const char *text)
{
	request_put(request, type, text, strlen(text) + 1);
}

void request_put_u32(struct request *request, int type, unsigned value)
{
	request_put(request, type, &value, sizeof(value));
}

size_t request_nest(struct request *request, int type)
{
	size_t nest = request->length;

	request_put(request, type | NLA_F_NESTED, NULL, 0);
	return nest;
}

void request_end_nest(struct request *request, size_t nest)
{
	((struct nlattr *)(request->bytes + nest))->nla_len = request->length - nest;
}

/* The first error counts; a batch without one ends with the acknowledgement of its last message. */
int request_send(int protocol, const struct request *request)
{
	char answer[8192] __attribute__((aligned(NLMSG_ALIGNTO)));
	struct timeval second = { .tv_sec = 1 };
	int fd = socket(AF_NETLINK, SOCK_RAW, protocol), result = -ETIMEDOUT;
	ssize_t size;

	if (fd < 0)
		return -errno;
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &second, sizeof(second));
	if (send(fd, request->bytes, request->length, 0) < 0)
		result = -errno;
	else if ((size = recv(fd, answer, sizeof(answer), 0)) > 0) {
		struct nlmsghdr *message = (void *)answer;

		result = message->nlmsg_type == NLMSG_ERROR
			? ((struct nlmsgerr *)NLMSG_DATA(message))->error : 0;
	}
	close(fd);
	return result;
}
