/* Faults for a process that is started with this before it (LD_PRELOAD): each is on while its file is there.
 *
 *   NCM_FAULTS/clock     seconds that CLOCK_REALTIME is off, in decimal
 *   NCM_FAULTS/netlink   one of so many netlink requests is refused, and one of so many reads says that messages were lost
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static long fault(const char *name) {
    char path[512], text[32];
    const char *directory = getenv("NCM_FAULTS");
    if (!directory) return 0;
    snprintf(path, sizeof path, "%s/%s", directory, name);
    int saved = errno, file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = file < 0 ? 0 : read(file, text, sizeof text - 1);
    if (file >= 0) close(file);
    errno = saved;
    if (length <= 0) return 0;
    text[length] = 0;
    return atol(text);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, clock, time);
    if (result == 0 && clock == CLOCK_REALTIME) time->tv_sec += fault("clock");
    return result;
}

static int fails(int socket) {
    static atomic_long calls;
    int domain = 0;
    socklen_t length = sizeof domain;
    if (getsockopt(socket, SOL_SOCKET, SO_DOMAIN, &domain, &length) || domain != AF_NETLINK) return 0;
    long every = fault("netlink");
    return every > 0 && atomic_fetch_add(&calls, 1) % every == every - 1;
}

ssize_t send(int socket, const void *bytes, size_t length, int flags) {
    static ssize_t (*real)(int, const void *, size_t, int);
    if (!real) real = dlsym(RTLD_NEXT, "send");
    if (fails(socket)) { errno = ENOBUFS; return -1; }
    return real(socket, bytes, length, flags);
}

ssize_t recvfrom(int socket, void *bytes, size_t length, int flags, struct sockaddr *address, socklen_t *size) {
    static ssize_t (*real)(int, void *, size_t, int, struct sockaddr *, socklen_t *);
    if (!real) real = dlsym(RTLD_NEXT, "recvfrom");
    ssize_t received = real(socket, bytes, length, flags, address, size);
    if (received > 0 && fails(socket)) { errno = ENOBUFS; return -1; }
    return received;
}

ssize_t recv(int socket, void *bytes, size_t length, int flags) {
    static ssize_t (*real)(int, void *, size_t, int);
    if (!real) real = dlsym(RTLD_NEXT, "recv");
    ssize_t received = real(socket, bytes, length, flags);
    if (received > 0 && fails(socket)) { errno = ENOBUFS; return -1; }
    return received;
}
