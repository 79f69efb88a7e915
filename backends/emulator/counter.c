/* A plugin of QEMU's that counts how often each block of 64-bit ARM code is run, and what it has inside.
 *
 *   qemu-aarch64 -plugin counter.so,out=FILE ...
 *
 * FILE gets a line for each block: its address, how often it was run, and how many of its instructions there are
 * in all, are multiply-adds of vectors of NEON (four floats), of SVE, of scalars, and reads and writes of memory.
 *
 * The declarations are those of version 1 of QEMU's plugin interface, which has been the same since QEMU 4.2.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef struct qemu_info_t qemu_info_t;
enum { ADD_U64 = 0 };

extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int, void *, uint64_t);
extern void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, void *), void *);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

enum { ALL, NEON, SVE, SCALAR, MEMORY, KINDS };

struct block {
    struct block *next;
    uint64_t address, runs, inside[KINDS];
};

static struct block *blocks;
static char path[4096];

/* Encodings: Arm Architecture Reference Manual, C4.1 and C7.2 (FMLA, FMLS by element and by vector; SDOT likewise;
   FMADD). */
static void count(uint32_t word, uint64_t *inside)
{
    bool element = (word & 0xFFC0B400) == 0x4F801000;
    bool vector = (word & 0xFF60FC00) == 0x4E20CC00;
    inside[ALL] += 1;
    bool bytes = (word & 0xFFE0FC00) == 0x4E809400 || (word & 0xFFC0F400) == 0x4F80E000;
    inside[NEON] += element || vector || bytes;
    inside[SVE] += (word & 0xFFE04000) == 0x65A00000 || (word & 0xFFE0F800) == 0x64A00000;
    inside[SCALAR] += (word & 0xFF000000) == 0x1F000000;
    inside[MEMORY] += (word >> 25 & 5) == 4;
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    struct block *block = calloc(1, sizeof *block);
    (void)id;
    if (!block)
        abort();
    block->address = qemu_plugin_tb_vaddr(tb);
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); i++) {
        uint32_t word;
        memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(tb, i)), sizeof word);
        count(word, block->inside);
    }
    qemu_plugin_register_vcpu_tb_exec_inline(tb, ADD_U64, &block->runs, 1);
    block->next = blocks;
    blocks = block;
}

static void finished(qemu_plugin_id_t id, void *data)
{
    FILE *file = fopen(path, "w");
    (void)id;
    (void)data;
    if (!file)
        return;
    for (struct block *block = blocks; block; block = block->next) {
        fprintf(file, "%llu %llu", (unsigned long long)block->address, (unsigned long long)block->runs);
        for (int kind = 0; kind < KINDS; kind++)
            fprintf(file, " %llu", (unsigned long long)block->inside[kind]);
        fputc('\n', file);
    }
    fclose(file);
}

__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc,
                                                               char **argv)
{
    (void)info;
    for (int i = 0; i < argc; i++)
        if (!strncmp(argv[i], "out=", 4))
            snprintf(path, sizeof path, "%s", argv[i] + 4);
    if (!path[0])
        return 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, finished, NULL);
    return 0;
}
