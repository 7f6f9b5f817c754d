#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#if !defined(__x86_64__) && !defined(DIFFRATIO_UCONTEXT)
#define DIFFRATIO_UCONTEXT
#endif
#if defined(DIFFRATIO_UCONTEXT)
#include <ucontext.h>
#endif

// There when ASan is loaded. This file and schedule.cpp are compiled without it, so that the frames in which
// fibers end leave no poison on their stacks.
extern "C" {
[[gnu::weak]] void __sanitizer_start_switch_fiber(void** frames, const void* stack, size_t size);
[[gnu::weak]] void __sanitizer_finish_switch_fiber(void* frames, const void** old_stack, size_t* old_size);
[[gnu::weak]] void __asan_unpoison_memory_region(const volatile void* from, size_t size);
}

namespace diffratio::simulator {
namespace {

// Most of a stack is never touched and costs nothing; its lowest page is a fence.
constexpr size_t kStack = 256 * 1024;

char* stacks() {
  static char* const base = [] {
    void* all = mmap(nullptr, kMaxFibers * kStack, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED) throw std::bad_alloc();
    for (unsigned i = 0; i < kMaxFibers; ++i)
      mprotect(static_cast<char*>(all) + i * kStack, static_cast<size_t>(getpagesize()), PROT_NONE);
    return static_cast<char*>(all);
  }();
  return base;
}

// Stacks that all begin at the same offset of a page would share one set of the first-level cache.
constexpr size_t cache_offset(unsigned number) { return number % 61 * 192; }

#if !defined(DIFFRATIO_UCONTEXT)

// Saves what a called function must preserve on this stack, then takes up the other stack where it stopped.
__attribute__((naked, noinline)) void switch_stack(void** /*stopped_at*/, void* /*to*/) {
  asm("push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
      "mov %rsp, (%rdi)\n"
      "mov %rsi, %rsp\n"
      "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n"
      "ret");
}

void* first_stop(Fiber&, char* top, void (*entry)()) {
  void** slot = reinterpret_cast<void**>(top);
  *--slot = nullptr;  // where entry would return to: the end of every backtrace
  *--slot = reinterpret_cast<void*>(entry);
  for (int saved = 0; saved < 6; ++saved) *--slot = nullptr;
  return slot;
}

#else

// The same anywhere, several times slower: it saves the signal mask by a system call.
void switch_stack(void** stopped_at, void* to) {
  ucontext_t here;
  *stopped_at = &here;
  swapcontext(&here, static_cast<ucontext_t*>(to));
}

void* first_stop(Fiber& fiber, char* top, void (*entry)()) {
  auto* context = reinterpret_cast<ucontext_t*>(top) - 1;
  getcontext(context);
  context->uc_stack.ss_sp = const_cast<void*>(fiber.stack);
  context->uc_stack.ss_size = reinterpret_cast<char*>(context) - static_cast<const char*>(fiber.stack);
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  return context;
}

#endif

// The fiber that was left last, until the one it went to has taken over.
Fiber* left = nullptr;

void arrived(void* asan_frames) {
  if (__sanitizer_finish_switch_fiber)
    __sanitizer_finish_switch_fiber(asan_frames, &left->stack, &left->size);
}

}  // namespace

void prepare(Fiber& fiber, unsigned number, void (*entry)()) {
  char* lowest = stacks() + number * kStack;
  fiber.stack = lowest;
  fiber.size = kStack;
  fiber.asan_frames = nullptr;
  fiber.stopped_at = first_stop(fiber, lowest + kStack - cache_offset(number), entry);
}

void switch_fiber(Fiber& from, Fiber& to, bool from_ends) {
  left = &from;
  if (__sanitizer_start_switch_fiber)
    __sanitizer_start_switch_fiber(from_ends ? nullptr : &from.asan_frames, to.stack, to.size);
  switch_stack(&from.stopped_at, to.stopped_at);
  arrived(from.asan_frames);
}

void entered() { arrived(nullptr); }

void forget_stacks() {
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(stacks(), kMaxFibers * kStack);
}

}  // namespace diffratio::simulator
