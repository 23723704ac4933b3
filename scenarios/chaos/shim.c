/* For LD_PRELOAD: steps the clock, and makes a disk slow, while a program runs. HAProxy is left alone: after a step of
 * the clock, some of its timeouts expire, whatever lbagent does.
 * $CHAOS_CONTROL is a file of two 64-bit numbers: seconds to add to the wall clock, microseconds that a write waits. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *control;

__attribute__((constructor)) static void map_control(void)
{
    const char *path = strcmp(program_invocation_short_name, "haproxy") ? getenv("CHAOS_CONTROL") : NULL;
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *mapped = mmap(NULL, 2 * sizeof *control, PROT_READ, MAP_SHARED, file, 0);
    if (mapped != MAP_FAILED)
        control = mapped;
    close(file);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int64_t offset(void)
{
    return control ? control[0] : 0;
}

static void wait_for_disk(void)
{
    if (control && control[1]) {
        struct timespec pause = {control[1] / 1000000, control[1] % 1000000 * 1000};
        nanosleep(&pause, NULL);
    }
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    static __typeof__(&clock_gettime) next;
    if (!next)
        next = NEXT(clock_gettime);
    int result = next(clock, now);
    if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += offset();
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    static __typeof__(&gettimeofday) next;
    if (!next)
        next = NEXT(gettimeofday);
    int result = next(now, zone);
    if (!result)
        now->tv_sec += offset();
    return result;
}

time_t time(time_t *result)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (result)
        *result = now.tv_sec;
    return now.tv_sec;
}

int fsync(int file)
{
    wait_for_disk();
    return NEXT(fsync)(file);
}

int fdatasync(int file)
{
    wait_for_disk();
    return NEXT(fdatasync)(file);
}

int rename(const char *from, const char *to)
{
    wait_for_disk();
    return NEXT(rename)(from, to);
}

int renameat(int from_folder, const char *from, int to_folder, const char *to)
{
    wait_for_disk();
    return NEXT(renameat)(from_folder, from, to_folder, to);
}
