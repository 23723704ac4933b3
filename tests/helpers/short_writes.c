/* Writes that the kernel cuts short, to a file, a pipe or a socket. No option of strace does that. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static long cut, calls;
static const char *report;

__attribute__((constructor)) static void start(void) {
    cut = atol(getenv("SHORT_WRITE"));
    report = getenv("SHORT_WRITE_REPORT");
    unsetenv("LD_PRELOAD"); /* programs that the run starts are not tested */
}

/* The length to write: half of the call with the wanted number, if it can be cut. */
static size_t shorten(int descriptor, size_t length) {
    if (length < 2 || ++calls != cut) return length;
    int file = open(report, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    dprintf(file, "%zu of %zu bytes to descriptor %d", length / 2, length, descriptor);
    close(file);
    return length / 2;
}

ssize_t write(int descriptor, const void *bytes, size_t length) {
    ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    return real(descriptor, bytes, shorten(descriptor, length));
}

ssize_t send(int descriptor, const void *bytes, size_t length, int flags) {
    ssize_t (*real)(int, const void *, size_t, int) = dlsym(RTLD_NEXT, "send");
    return real(descriptor, bytes, shorten(descriptor, length), flags);
}
