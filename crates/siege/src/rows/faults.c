/* Preloaded into the reflector: lets calls that write below one folder fail.
 *
 * FAULTS_FOLDER is that folder; FAULTS_CONTROL a file of four 64-bit numbers, shared with the siege:
 * calls so far, the first call that fails, the first one after it that does not, and the errno. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

static struct {
    _Atomic uint64_t calls, from, to, error;
} *control;
static const char *folder;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("FAULTS_CONTROL");
    folder = getenv("FAULTS_FOLDER");
    int fd = path && folder ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *shared = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (shared != MAP_FAILED)
        control = shared;
}

static int fails_at(const char *path) {
    if (!control || strncmp(path, folder, strlen(folder)) != 0)
        return 0;
    uint64_t call = atomic_fetch_add(&control->calls, 1);
    if (call < control->from || call >= control->to)
        return 0;
    errno = (int)control->error;
    return 1;
}

static int fails(int fd) {
    char link[32], path[4096];
    if (!control)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int kept = errno;
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = kept;
    if (length < 0)
        return 0;
    path[length] = 0;
    return fails_at(path);
}

#define NEXT(name) ({ static typeof(&name) next; if (!next) next = (typeof(&name))dlsym(RTLD_NEXT, #name); next; })

ssize_t write(int fd, const void *bytes, size_t count) { return fails(fd) ? -1 : NEXT(write)(fd, bytes, count); }
ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at) {
    return fails(fd) ? -1 : NEXT(pwrite)(fd, bytes, count, at);
}
ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    return fails(fd) ? -1 : NEXT(pwrite64)(fd, bytes, count, at);
}
int fsync(int fd) { return fails(fd) ? -1 : NEXT(fsync)(fd); }
int fdatasync(int fd) { return fails(fd) ? -1 : NEXT(fdatasync)(fd); }
int ftruncate(int fd, off_t length) { return fails(fd) ? -1 : NEXT(ftruncate)(fd, length); }
int ftruncate64(int fd, off64_t length) { return fails(fd) ? -1 : NEXT(ftruncate64)(fd, length); }
int unlink(const char *path) { return fails_at(path) ? -1 : NEXT(unlink)(path); }
int rename(const char *from, const char *to) { return fails_at(to) ? -1 : NEXT(rename)(from, to); }
