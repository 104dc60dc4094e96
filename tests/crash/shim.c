/* Says, before it happens, what a process and its children are about to change below one folder.
 *
 * Loaded by LD_PRELOAD. While CRASH_SOCKET is set, each call that would change something below
 * CRASH_ROOT (or make it durable) is announced on that socket as "call\0inode\0path\0other path",
 * and waits until the driver answers: so the driver sees the disk exactly as a SIGKILL at this
 * moment would leave it, and can make it one. A write is done in two halves, each announced.
 *
 * The answer is a byte: 0 lets the call happen, SHORT lets half of a write happen, anything else is
 * the errno with which the call fails, undone. While CRASH_ALLOCATIONS is set, too, allocations of
 * at least so many bytes are announced as "allocate\0bytes\0\0", and fail at any other answer than 0.
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

enum { SHORT = 255 };

static int announce(const char *call, unsigned long inode, const char *path, const char *other) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char text[2 * PATH_MAX + 64];
    unsigned char answer;
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
    return answer;
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

/* Each `at_…` returns whether the call must fail, with errno set (or SHORT); else errno stays. */

static int at_path(const char *call, int folder, const char *path) {
    char whole[PATH_MAX];
    int saved = errno, answer = 0;
    if (getenv("CRASH_SOCKET") && resolve(folder, path, whole) && is_below(whole))
        answer = announce(call, 0, whole, "");
    errno = answer ? answer : saved;
    return answer;
}

static int at_paths(const char *call, int folder, const char *path, int to, const char *other) {
    char whole[PATH_MAX], second[PATH_MAX];
    int saved = errno, answer = 0;
    if (getenv("CRASH_SOCKET") && resolve(folder, path, whole) && resolve(to, other, second) &&
        (is_below(whole) || is_below(second)))
        answer = announce(call, 0, whole, second);
    errno = answer ? answer : saved;
    return answer;
}

/* The descriptor may be of a file or folder below the root; `seen`, if not NULL, says whether. */
static int at_file_seen(const char *call, int file, int *seen) {
    char link[64], path[PATH_MAX];
    struct stat about;
    int saved = errno, answer = 0, ours = 0;
    if (getenv("CRASH_SOCKET") && !fstat(file, &about) &&
        (S_ISREG(about.st_mode) || S_ISDIR(about.st_mode))) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", file);
        ssize_t length = readlink(link, path, sizeof path - 1);
        path[length < 0 ? 0 : length] = 0;
        if ((ours = is_below(path))) answer = announce(call, about.st_ino, path, "");
    }
    if (seen) *seen = ours;
    errno = answer ? answer : saved;
    return answer;
}

static int at_file(const char *call, int file) { return at_file_seen(call, file, NULL); }

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
        if (call && at_path(call, AT_FDCWD, path)) return -1; \
        return real(path, flags, mode);                     \
    }
#define OPENAT(name)                                        \
    int name(int folder, const char *path, int flags, ...) {\
        REAL(name);                                         \
        MODE(flags)                                         \
        const char *call = opening(flags);                  \
        if (call && at_path(call, folder, path)) return -1; \
        return real(folder, path, flags, mode);             \
    }
#define CREAT(name)                                         \
    int name(const char *path, mode_t mode) {               \
        REAL(name);                                         \
        if (at_path("open, truncating", AT_FDCWD, path)) return -1; \
        return real(path, mode);                            \
    }
#define FOPEN(name)                                         \
    FILE *name(const char *path, const char *mode) {        \
        REAL(name);                                         \
        if (*mode == 'w' && at_path("open, truncating", AT_FDCWD, path)) return NULL; \
        if (*mode != 'w' && strpbrk(mode, "a+") && at_path("open", AT_FDCWD, path)) return NULL; \
        return real(path, mode);                            \
    }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)
CREAT(creat) CREAT(creat64) FOPEN(fopen) FOPEN(fopen64)

/* Contents. */

#define REFUSED ((size_t)-1)

/* How much of a write may happen: all of it, half, or REFUSED. */
static size_t taken(int answer, size_t size) {
    if (answer == SHORT) return size > 1 ? size / 2 : size;
    return answer ? REFUSED : size;
}

ssize_t write(int file, const void *data, size_t size) {
    REAL(write);
    int seen, answer = at_file_seen("write", file, &seen);
    if (answer && answer != SHORT) return -1;
    if (!seen || size < 2) return real(file, data, size);
    ssize_t half = real(file, data, size / 2);
    if (half != (ssize_t)(size / 2) || answer == SHORT) return half;
    answer = at_file("write, second half", file);
    if (answer) return errno == ENOSPC || answer == SHORT ? half : -1; /* a full disk takes what fits */
    ssize_t rest = real(file, (const char *)data + half, size - half);
    return rest < 0 ? half : half + rest;
}

#define PWRITE(name, offset_t)                                                  \
    ssize_t name(int file, const void *data, size_t size, offset_t offset) {    \
        REAL(name);                                                             \
        size = taken(at_file("write", file), size);                             \
        return size == REFUSED ? -1 : real(file, data, size, offset);           \
    }
#define TRUNCATE(name, offset_t)                            \
    int name(const char *path, offset_t length) {           \
        REAL(name);                                         \
        if (at_path("truncate", AT_FDCWD, path)) return -1; \
        return real(path, length);                          \
    }
#define FTRUNCATE(name, offset_t)                           \
    int name(int file, offset_t length) {                   \
        REAL(name);                                         \
        if (at_file("truncate", file)) return -1;           \
        return real(file, length);                          \
    }
PWRITE(pwrite, off_t) PWRITE(pwrite64, off64_t)
TRUNCATE(truncate, off_t) TRUNCATE(truncate64, off64_t)
FTRUNCATE(ftruncate, off_t) FTRUNCATE(ftruncate64, off64_t)

ssize_t writev(int file, const struct iovec *parts, int count) {
    REAL(writev);
    size_t some = taken(at_file("write", file), count);
    return some == REFUSED ? -1 : real(file, parts, some);
}

ssize_t sendfile(int file, int source, off_t *offset, size_t size) {
    REAL(sendfile);
    size = taken(at_file("write", file), size);
    return size == REFUSED ? -1 : real(file, source, offset, size);
}

ssize_t sendfile64(int file, int source, off64_t *offset, size_t size) {
    REAL(sendfile64);
    size = taken(at_file("write", file), size);
    return size == REFUSED ? -1 : real(file, source, offset, size);
}

ssize_t copy_file_range(int source, off64_t *from, int file, off64_t *to, size_t size, unsigned flags) {
    REAL(copy_file_range);
    size = taken(at_file("write", file), size);
    return size == REFUSED ? -1 : real(source, from, file, to, size, flags);
}

#define MMAP(name, offset_t)                                                        \
    void *name(void *at, size_t size, int use, int flags, int file, offset_t offset) { \
        REAL(name);                                                                 \
        if (file >= 0 && (use & PROT_WRITE) && (flags & MAP_SHARED) && at_file("map", file)) \
            return MAP_FAILED;                                                      \
        return real(at, size, use, flags, file, offset);                            \
    }
MMAP(mmap, off_t) MMAP(mmap64, off64_t)

/* Names. */

#define ONE_PATH(name, ...)                                 \
    int name(const char *path __VA_OPT__(, mode_t mode)) {  \
        REAL(name);                                         \
        if (at_path(#name, AT_FDCWD, path)) return -1;      \
        return real(path __VA_OPT__(, mode));               \
    }
ONE_PATH(mkdir, mode) ONE_PATH(rmdir) ONE_PATH(unlink) ONE_PATH(remove)

int mkdirat(int folder, const char *path, mode_t mode) {
    REAL(mkdirat);
    if (at_path("mkdir", folder, path)) return -1;
    return real(folder, path, mode);
}

int unlinkat(int folder, const char *path, int flags) {
    REAL(unlinkat);
    if (at_path(flags & AT_REMOVEDIR ? "rmdir" : "unlink", folder, path)) return -1;
    return real(folder, path, flags);
}

int rename(const char *path, const char *other) {
    REAL(rename);
    if (at_paths("rename", AT_FDCWD, path, AT_FDCWD, other)) return -1;
    return real(path, other);
}

int renameat(int folder, const char *path, int to, const char *other) {
    REAL(renameat);
    if (at_paths("rename", folder, path, to, other)) return -1;
    return real(folder, path, to, other);
}

int renameat2(int folder, const char *path, int to, const char *other, unsigned flags) {
    REAL(renameat2);
    if (at_paths(flags & RENAME_EXCHANGE ? "exchange" : "rename", folder, path, to, other)) return -1;
    return real(folder, path, to, other, flags);
}

int link(const char *path, const char *other) {
    REAL(link);
    if (at_paths("link", AT_FDCWD, path, AT_FDCWD, other)) return -1;
    return real(path, other);
}

int linkat(int folder, const char *path, int to, const char *other, int flags) {
    REAL(linkat);
    if (at_paths("link", folder, path, to, other)) return -1;
    return real(folder, path, to, other, flags);
}

int symlink(const char *target, const char *path) {
    REAL(symlink);
    if (at_path("symlink", AT_FDCWD, path)) return -1;
    return real(target, path);
}

int symlinkat(const char *target, int folder, const char *path) {
    REAL(symlinkat);
    if (at_path("symlink", folder, path)) return -1;
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
    if (number == SYS_renameat2 &&
        at_paths(a[4] & RENAME_EXCHANGE ? "exchange" : "rename", a[0], (char *)a[1], a[2], (char *)a[3]))
        return -1;
    if (number == SYS_copy_file_range) {
        size_t size = taken(at_file("write", a[2]), a[4]);
        if (size == REFUSED) return -1;
        a[4] = size;
    }
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

/* Durability. */

int fsync(int file) {
    REAL(fsync);
    if (at_file("fsync", file)) return -1;
    return real(file);
}

int fdatasync(int file) {
    REAL(fdatasync);
    if (at_file("fsync", file)) return -1;
    return real(file);
}

int syncfs(int file) {
    REAL(syncfs);
    int answer = getenv("CRASH_SOCKET") ? announce("sync", 0, getenv("CRASH_ROOT"), "") : 0;
    if (answer) {
        errno = answer;
        return -1;
    }
    return real(file);
}

void sync(void) {
    REAL(sync);
    if (getenv("CRASH_SOCKET")) announce("sync", 0, getenv("CRASH_ROOT"), "");
    real();
}

/* Memory. glibc's own functions, for looking up others allocates. */

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t), *__libc_memalign(size_t, size_t);

static int no_memory(size_t size) {
    const char *least = size < 4096 ? NULL : getenv("CRASH_ALLOCATIONS");
    if (!least || size < strtoul(least, NULL, 10) || !announce("allocate", size, "", "")) return 0;
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t size) { return no_memory(size) ? NULL : __libc_malloc(size); }

void *realloc(void *old, size_t size) { return no_memory(size) ? NULL : __libc_realloc(old, size); }

void *calloc(size_t count, size_t size) {
    return no_memory(count * size) ? NULL : __libc_calloc(count, size);
}

void *memalign(size_t step, size_t size) { return no_memory(size) ? NULL : __libc_memalign(step, size); }

void *aligned_alloc(size_t step, size_t size) { return memalign(step, size); }

int posix_memalign(void **place, size_t step, size_t size) {
    void *found = memalign(step, size);
    if (!found) return ENOMEM;
    *place = found;
    return 0;
}
