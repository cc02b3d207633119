/* Makes llama-bench wait for its turn: preloaded, it stands before llama_memory_clear, which llama-bench calls before
 * every repetition and never while its clock runs. bench_parity.py gives the turns. The program itself is unchanged. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

void llama_memory_clear(void *memory, bool data) {
    void (*real)(void *, bool) = (void (*)(void *, bool))dlsym(RTLD_NEXT, "llama_memory_clear");
    const char *ready = getenv("TURNS_READY"), *go = getenv("TURNS_GO");
    char byte = 't';
    if (!real || !ready || !go || write(atoi(ready), &byte, 1) != 1 || read(atoi(go), &byte, 1) != 1) exit(3);
    real(memory, data);
}
