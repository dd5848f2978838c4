/*
 * Lets Debian's user-mode-linux 6.1 run on processors with a large register state (AMX: 11 kB).
 *
 * That kernel keeps the extended registers of its processes in 2,696 bytes. It reads them with PTRACE_GETREGSET, which
 * truncates, and writes them back with PTRACE_SETREGSET, which the host's kernel refuses unless all bytes are there:
 * its first process then dies in put_fp_registers(). Preloaded, this adds what is missing on the way back: registers
 * beyond those 2,696 bytes are in their initial state, because nothing that runs there uses them.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>

enum { MOST_BYTES = 1 << 16, HEADER_AT = 512, WITHIN_KEPT_BYTES = 0x2ff };

static size_t state_bytes; /* of this processor; 0 while it is not known */

long ptrace(enum __ptrace_request request, ...)
{
	static long (*real)(enum __ptrace_request, pid_t, void *, void *);
	static unsigned char whole[MOST_BYTES];
	va_list arguments;

	va_start(arguments, request);
	pid_t pid = va_arg(arguments, pid_t);
	void *address = va_arg(arguments, void *);
	void *data = va_arg(arguments, void *);
	va_end(arguments);
	if (!real)
		real = (long (*)(enum __ptrace_request, pid_t, void *, void *))dlsym(RTLD_NEXT, "ptrace");
	if (request != PTRACE_SETREGSET || address != (void *)(uintptr_t)NT_X86_XSTATE)
		return real(request, pid, address, data);

	struct iovec *kept = data;
	if (!state_bytes) {
		struct iovec probe = { whole, sizeof(whole) };
		if (real(PTRACE_GETREGSET, pid, address, &probe))
			return -1;
		state_bytes = probe.iov_len;
	}
	if (kept->iov_len >= state_bytes)
		return real(request, pid, address, data);
	memset(whole, 0, state_bytes);
	memcpy(whole, kept->iov_base, kept->iov_len);
	/* XSTATE_BV: components that are not in the bytes kept are in their initial state. */
	uint64_t present;
	memcpy(&present, whole + HEADER_AT, sizeof(present));
	present &= WITHIN_KEPT_BYTES;
	memcpy(whole + HEADER_AT, &present, sizeof(present));
	struct iovec all = { whole, state_bytes };
	return real(request, pid, address, &all);
}
