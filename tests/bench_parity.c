/* Stands between llama-bench and llama.cpp when bench_parity.py calls llama-bench inside its own process. Loaded first and for
 * all to see, its functions are found before those of llama.cpp. Neither program is changed otherwise.
 *
 * Turns: where llama-bench frees a context, bench_parity.py goes on with its own and comes back later.
 *
 * Model: llama-bench gets the one that is loaded already, so both read the same weights at the same place.
 *
 * Memory: where a context's buffers come to lie decides how their pages fall into the processor's caches, and makes it faster or
 * slower by up to a third. So the contexts of both are laid into the same piece of memory, one after the other, each block at a place
 * drawn from a seed: the same seed for the two contexts of a pair, another for every pair. What is asked for is counted and hashed,
 * so that bench_parity.py sees whether both asked for the same. Memory of a GPU is not reached by this. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { CACHE_LINE = 64, MALLOC_STEP = 16 };
#define MEMORY_BYTES ((size_t)1 << 36) /* of addresses; what is never written takes none of the machine's */
#define LEAST_BYTES ((size_t)1 << 16)  /* of a buffer; smaller things of ggml outlive their context */

static char *memory, *next;
static uint64_t state, asked;
static void *model;
static void (*at_end)(void *context);

int beside_start(void *loaded_model, void (*end_of_context)(void *)) {
    void *found = mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (found == MAP_FAILED) return 0;
    memory = next = found;
    model = loaded_model;
    at_end = end_of_context;
    return 1;
}

/* What is asked for from here on belongs to a new context; the one before is gone. */
void beside_context(uint64_t seed) {
    next = memory;
    state = seed;
    asked = 0;
}

uint64_t beside_asked(void) { return asked; }

/* splitmix64 */
static uint64_t draw(void) {
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Up to 256 KiB further on, at a multiple of `step` bytes. */
static void *take(size_t size, size_t step) {
    next += -(uintptr_t)next % CACHE_LINE + CACHE_LINE * (draw() % 4096) + step * (draw() % (CACHE_LINE / step));
    if (size > (size_t)(memory + MEMORY_BYTES - next)) return NULL;
    void *given = next;
    next += size;
    asked = (asked ^ size) * 0x100000001b3u + 1;
    return given;
}

static int taken(void *block) { return memory && (char *)block >= memory && (char *)block < memory + MEMORY_BYTES; }

void *ggml_aligned_malloc(size_t size) {
    void *given = NULL;
    if (memory && size >= LEAST_BYTES) return take(size, CACHE_LINE);
    return posix_memalign(&given, CACHE_LINE, size) ? NULL : given;
}

void ggml_aligned_free(void *block, size_t size) {
    (void)size;
    if (!taken(block)) free(block);
}

/* new[] and delete[] of ggml's processor backend: a context's working space, aligned no better than malloc does. */
void *_Znam(size_t size) {
    Dl_info caller;
    int of_backend = memory && dladdr(__builtin_return_address(0), &caller) && strstr(caller.dli_fname, "libggml-cpu");
    void *given = of_backend ? take(size, MALLOC_STEP) : malloc(size ? size : 1);
    if (!given) abort();
    return given;
}

void _ZdaPv(void *block) {
    if (!taken(block)) free(block);
}

/* Only llama-bench comes here; nbutils calls llama.cpp's own. What the model is loaded with is passed behind the path and not looked at. */
void *llama_model_load_from_file(const char *path) {
    (void)path;
    return model;
}

void llama_model_free(void *shared) { (void)shared; }

void llama_free(void *context) { at_end(context); }
