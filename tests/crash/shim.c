/* Says, before it happens, what a process and its children are about to change below one folder.
 *
 * Loaded by LD_PRELOAD. While CRASH_SOCKET is set, each call that would change something below
 * CRASH_ROOT (or make it durable) is announced on that socket as "call\0inode\0path\0other path",
 * and waits until the driver answers: so the driver sees the disk exactly as a SIGKILL at this
 * moment would leave it, and can make it one. A write is done in two halves, each announced.
 *
 * What the C library does within itself (fclose's last write, say), and what code asks of the kernel
 * past it (safetensors' renaming of its temporary file), isn't a point; its effect is seen at the
 * next one.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#define REAL(name)                                \
    static __typeof__(name) *real;                \
    if (!real) real = dlsym(RTLD_NEXT, #name)

static int is_below(const char *path) {
    const char *root = getenv("CRASH_ROOT");
    size_t length = root ? strlen(root) : 0;
    return length && !strncmp(path, root, length) && (path[length] == '/' || !path[length]);
}

static void announce(const char *call, unsigned long inode, const char *path, const char *other) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char text[2 * PATH_MAX + 64], answer;
    int length = snprintf(text, sizeof text, "%s%c%lu%c%s%c%s", call, 0, inode, 0, path, 0, other);
    int saved = errno, channel = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    strncpy(address.sun_path, getenv("CRASH_SOCKET"), sizeof address.sun_path - 1);
    if (connect(channel, (struct sockaddr *)&address, sizeof address) ||
        send(channel, text, length, 0) != length || recv(channel, &answer, 1, 0) != 1) {
        fprintf(stderr, "shim: nobody listens, so %s(%s) would go unseen\n", call, path);
        abort();
    }
    close(channel);
    errno = saved;
}

/* The absolute path without links, but for a link that is the last part itself. */
static int resolve(int folder, const char *path, char *whole) {
    char joined[2 * PATH_MAX], base[PATH_MAX] = "", link[64], *slash;
    if (*path != '/') {
        snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
        ssize_t length = readlink(link, base, sizeof base - 1);
        if (length < 0) return 0;
        base[length] = 0;
    }
    snprintf(joined, sizeof joined, "%s/%s", base, path);
    for (size_t end = strlen(joined); end > 1 && joined[end - 1] == '/';) joined[--end] = 0;
    slash = strrchr(joined, '/');
    *slash = 0;
    if (!realpath(*joined ? joined : "/", whole)) return 0;
    size_t length = strlen(whole);
    snprintf(whole + length, PATH_MAX - length, "/%s", slash + 1);
    return 1;
}

static void at_path(const char *call, int folder, const char *path) {
    char whole[PATH_MAX];
    int saved = errno;
    if (getenv("CRASH_SOCKET") && resolve(folder, path, whole) && is_below(whole))
        announce(call, 0, whole, "");
    errno = saved;
}

static void at_paths(const char *call, int folder, const char *path, int to, const char *other) {
    char whole[PATH_MAX], second[PATH_MAX];
    int saved = errno;
    if (getenv("CRASH_SOCKET") && resolve(folder, path, whole) && resolve(to, other, second) &&
        (is_below(whole) || is_below(second)))
        announce(call, 0, whole, second);
    errno = saved;
}

/* Whether the descriptor belongs to a file or folder below the root. */
static int at_file(const char *call, int file) {
    char link[64], path[PATH_MAX];
    struct stat about;
    int saved = errno, seen = 0;
    if (getenv("CRASH_SOCKET") && !fstat(file, &about) &&
        (S_ISREG(about.st_mode) || S_ISDIR(about.st_mode))) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", file);
        ssize_t length = readlink(link, path, sizeof path - 1);
        path[length < 0 ? 0 : length] = 0;
        if ((seen = is_below(path))) announce(call, about.st_ino, path, "");
    }
    errno = saved;
    return seen;
}

/* Opening. Only what may make or change a file counts. */

static const char *opening(int flags) {
    if ((flags & O_TMPFILE) == O_TMPFILE) return NULL;
    if (flags & O_TRUNC) return "open, truncating";
    return flags & (O_CREAT | O_WRONLY | O_RDWR) ? "open" : NULL;
}

#define MODE(flags)                                         \
    mode_t mode = 0;                                        \
    if (flags & (O_CREAT | O_TMPFILE)) {                    \
        va_list rest;                                       \
        va_start(rest, flags);                              \
        mode = va_arg(rest, mode_t);                        \
        va_end(rest);                                       \
    }

#define OPEN(name)                                          \
    int name(const char *path, int flags, ...) {            \
        REAL(name);                                         \
        MODE(flags)                                         \
        const char *call = opening(flags);                  \
        if (call) at_path(call, AT_FDCWD, path);            \
        return real(path, flags, mode);                     \
    }
#define OPENAT(name)                                        \
    int name(int folder, const char *path, int flags, ...) {\
        REAL(name);                                         \
        MODE(flags)                                         \
        const char *call = opening(flags);                  \
        if (call) at_path(call, folder, path);              \
        return real(folder, path, flags, mode);             \
    }
#define CREAT(name)                                         \
    int name(const char *path, mode_t mode) {               \
        REAL(name);                                         \
        at_path("open, truncating", AT_FDCWD, path);        \
        return real(path, mode);                            \
    }
#define FOPEN(name)                                         \
    FILE *name(const char *path, const char *mode) {        \
        REAL(name);                                         \
        if (*mode == 'w') at_path("open, truncating", AT_FDCWD, path); \
        else if (strpbrk(mode, "a+")) at_path("open", AT_FDCWD, path); \
        return real(path, mode);                            \
    }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)
CREAT(creat) CREAT(creat64) FOPEN(fopen) FOPEN(fopen64)

/* Contents. */

ssize_t write(int file, const void *data, size_t size) {
    REAL(write);
    if (!at_file("write", file) || size < 2) return real(file, data, size);
    ssize_t half = real(file, data, size / 2);
    if (half != (ssize_t)(size / 2)) return half;
    at_file("write, second half", file);
    ssize_t rest = real(file, (const char *)data + half, size - half);
    return rest < 0 ? half : half + rest;
}

#define PWRITE(name, offset_t)                                                  \
    ssize_t name(int file, const void *data, size_t size, offset_t offset) {    \
        REAL(name);                                                             \
        at_file("write", file);                                                 \
        return real(file, data, size, offset);                                  \
    }
#define TRUNCATE(name, offset_t)                            \
    int name(const char *path, offset_t length) {           \
        REAL(name);                                         \
        at_path("truncate", AT_FDCWD, path);                \
        return real(path, length);                          \
    }
#define FTRUNCATE(name, offset_t)                           \
    int name(int file, offset_t length) {                   \
        REAL(name);                                         \
        at_file("truncate", file);                          \
        return real(file, length);                          \
    }
PWRITE(pwrite, off_t) PWRITE(pwrite64, off64_t)
TRUNCATE(truncate, off_t) TRUNCATE(truncate64, off64_t)
FTRUNCATE(ftruncate, off_t) FTRUNCATE(ftruncate64, off64_t)

ssize_t writev(int file, const struct iovec *parts, int count) {
    REAL(writev);
    at_file("write", file);
    return real(file, parts, count);
}

ssize_t sendfile(int file, int source, off_t *offset, size_t size) {
    REAL(sendfile);
    at_file("write", file);
    return real(file, source, offset, size);
}

ssize_t sendfile64(int file, int source, off64_t *offset, size_t size) {
    REAL(sendfile64);
    at_file("write", file);
    return real(file, source, offset, size);
}

ssize_t copy_file_range(int source, off64_t *from, int file, off64_t *to, size_t size, unsigned flags) {
    REAL(copy_file_range);
    at_file("write", file);
    return real(source, from, file, to, size, flags);
}

#define MMAP(name, offset_t)                                                        \
    void *name(void *at, size_t size, int use, int flags, int file, offset_t offset) { \
        REAL(name);                                                                 \
        if (file >= 0 && (use & PROT_WRITE) && (flags & MAP_SHARED)) at_file("map", file); \
        return real(at, size, use, flags, file, offset);                            \
    }
MMAP(mmap, off_t) MMAP(mmap64, off64_t)

/* Names. */

#define ONE_PATH(name, ...)                                 \
    int name(const char *path __VA_OPT__(, mode_t mode)) {  \
        REAL(name);                                         \
        at_path(#name, AT_FDCWD, path);                     \
        return real(path __VA_OPT__(, mode));               \
    }
ONE_PATH(mkdir, mode) ONE_PATH(rmdir) ONE_PATH(unlink) ONE_PATH(remove)

int mkdirat(int folder, const char *path, mode_t mode) {
    REAL(mkdirat);
    at_path("mkdir", folder, path);
    return real(folder, path, mode);
}

int unlinkat(int folder, const char *path, int flags) {
    REAL(unlinkat);
    at_path(flags & AT_REMOVEDIR ? "rmdir" : "unlink", folder, path);
    return real(folder, path, flags);
}

int rename(const char *path, const char *other) {
    REAL(rename);
    at_paths("rename", AT_FDCWD, path, AT_FDCWD, other);
    return real(path, other);
}

int renameat(int folder, const char *path, int to, const char *other) {
    REAL(renameat);
    at_paths("rename", folder, path, to, other);
    return real(folder, path, to, other);
}

int renameat2(int folder, const char *path, int to, const char *other, unsigned flags) {
    REAL(renameat2);
    at_paths(flags & RENAME_EXCHANGE ? "exchange" : "rename", folder, path, to, other);
    return real(folder, path, to, other, flags);
}

int link(const char *path, const char *other) {
    REAL(link);
    at_paths("link", AT_FDCWD, path, AT_FDCWD, other);
    return real(path, other);
}

int linkat(int folder, const char *path, int to, const char *other, int flags) {
    REAL(linkat);
    at_paths("link", folder, path, to, other);
    return real(folder, path, to, other, flags);
}

int symlink(const char *target, const char *path) {
    REAL(symlink);
    at_path("symlink", AT_FDCWD, path);
    return real(target, path);
}

int symlinkat(const char *target, int folder, const char *path) {
    REAL(symlinkat);
    at_path("symlink", folder, path);
    return real(target, folder, path);
}

/* What is called by its number: Rust renames so. */
long syscall(long number, ...) {
    REAL(syscall);
    long a[6];
    va_list rest;
    va_start(rest, number);
    for (int i = 0; i < 6; i++) a[i] = va_arg(rest, long);
    va_end(rest);
    if (number == SYS_renameat2)
        at_paths(a[4] & RENAME_EXCHANGE ? "exchange" : "rename", a[0], (char *)a[1], a[2], (char *)a[3]);
    if (number == SYS_copy_file_range) at_file("write", a[2]);
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

/* Durability. */

int fsync(int file) {
    REAL(fsync);
    at_file("fsync", file);
    return real(file);
}

int fdatasync(int file) {
    REAL(fdatasync);
    at_file("fsync", file);
    return real(file);
}

int syncfs(int file) {
    REAL(syncfs);
    if (getenv("CRASH_SOCKET")) announce("sync", 0, getenv("CRASH_ROOT"), "");
    return real(file);
}

void sync(void) {
    REAL(sync);
    if (getenv("CRASH_SOCKET")) announce("sync", 0, getenv("CRASH_ROOT"), "");
    real();
}
