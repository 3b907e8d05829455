/* Preloaded: some writes and syncs of the database's files fail with EIO, as on a disk that is dying.
   UNSOUND_DISK is how many of 1,000 calls fail; each adds a letter to the file UNSOUND_DISK_LOG. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int struck(int fd) {
    static __thread unsigned seed = 0;
    char link[64], path[4096];
    const char *wish = getenv("UNSOUND_DISK");
    if (!wish) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    if (!strstr(path, "docferry.db")) return 0;
    if (!seed) seed = (unsigned)getpid();
    if (rand_r(&seed) % 1000 >= atoi(wish)) return 0;
    FILE *told = fopen(getenv("UNSOUND_DISK_LOG"), "a");
    if (told) { fputc('x', told); fclose(told); }
    return 1;
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

ssize_t pwrite64(int fd, const void *block, size_t size, off64_t at) {
    REAL(pwrite64);
    if (struck(fd)) { errno = EIO; return -1; }
    return real(fd, block, size, at);
}

int fdatasync(int fd) {
    REAL(fdatasync);
    if (struck(fd)) { errno = EIO; return -1; }
    return real(fd);
}

int fsync(int fd) {
    REAL(fsync);
    if (struck(fd)) { errno = EIO; return -1; }
    return real(fd);
}
