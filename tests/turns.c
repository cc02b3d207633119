/* Makes llama-bench wait for its turn: preloaded, it stands before llama_memory_clear, which llama-bench calls before
 * every repetition and never while its clock runs. bench_parity.py gives the turns. The program itself is unchanged.
 *
 * Before every context it also takes some memory of random sizes, as nbutils does beside it, so that the context's buffers
 * come to lie elsewhere, relative to each other and to pages, than those of the one before. A program makes the same
 * allocations every time, and so would measure one layout, lucky or not, for ever. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/random.h>
#include <unistd.h>

enum { PADS = 16, MOST_BYTES = 1 << 21 };
static void *pads[PADS];

/* Half of them small, from the heap; the others large enough to come straight from the system. */
__attribute__((constructor)) static void shift_what_comes(void) {
    for (int i = 0; i < PADS; i++) {
        unsigned draw = 0;
        if (getrandom(&draw, sizeof draw, 0) != sizeof draw) exit(3);
        free(pads[i]);
        pads[i] = malloc(1 + draw % (i % 2 ? MOST_BYTES : 1 << 13));
    }
}

void llama_memory_clear(void *memory, bool data) {
    void (*real)(void *, bool) = (void (*)(void *, bool))dlsym(RTLD_NEXT, "llama_memory_clear");
    const char *ready = getenv("TURNS_READY"), *go = getenv("TURNS_GO");
    char byte = 't';
    if (!real || !ready || !go || write(atoi(ready), &byte, 1) != 1 || read(atoi(go), &byte, 1) != 1) exit(3);
    real(memory, data);
}

void llama_free(void *context) {
    void (*real)(void *) = (void (*)(void *))dlsym(RTLD_NEXT, "llama_free");
    if (!real) exit(3);
    real(context);
    shift_what_comes();
}
