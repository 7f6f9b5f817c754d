// Shared memory: bounds, alignment, races between barriers, asynchronous writers and readers.
#include <algorithm>
#include <cstring>

#include "machine.h"

namespace ptx {

void Shared::resize(u32 bytes, bool watched) {
  bytes_.resize(bytes);
  seen_.resize(watched ? bytes : 0);
}

void Shared::poison() {
  for (size_t at = 0; at + 2 <= bytes_.size(); at += 2) std::memcpy(&bytes_[at], &POISON, 2);
  std::fill(seen_.begin(), seen_.end(), Seen{});
  epoch_ = 1;
}

char* Shared::at(const Warp& w, const Instruction& i, int lane, u64 address, u32 bytes, u32 alignment) {
  u64 offset = address - SHARED_BASE;
  if (offset > size() || offset + bytes > size())
    w.fail(i, lane, format("shared offset %lld of %u bytes is outside of %u", static_cast<long long>(offset), bytes, size()));
  if (address % alignment)
    w.fail(i, lane, format("misaligned: %u bytes at shared offset %lld", alignment, static_cast<long long>(offset)));
  return data() + offset;
}

void Shared::reading(const Warp& w, const Instruction& i, int lane, const char* p, u32 bytes) {
  if (seen_.empty()) return;
  Seen* s = &seen_[static_cast<size_t>(p - data())];
  for (u32 n = 0; n < bytes; n++, s++) {
    if (s->pending) w.fail(i, lane, "reads shared memory that an asynchronous copy has still to write");
    if (s->written == epoch_ && s->writer != w.id)
      w.fail(i, lane, format("race: reads shared offset %td, which warp %d wrote since the last barrier", s - seen_.data(), s->writer));
    if (s->read != epoch_) s->read = epoch_, s->readers = 0;
    s->readers |= 1u << w.id;
  }
}

void Shared::writing(const Warp& w, const Instruction& i, int lane, const char* p, u32 bytes, Writer kind, const void* value) {
  if (seen_.empty()) return;
  Seen* s = &seen_[static_cast<size_t>(p - data())];
  for (u32 n = 0; n < bytes; n++, s++) {
    if (s->pending) w.fail(i, lane, "writes shared memory that an asynchronous copy has still to write");
    bool harmless = (value && p[n] == static_cast<const char*>(value)[n]) || (kind == ATOMIC && s->kind == ATOMIC);
    if (s->written == epoch_ && s->writer != w.id && !harmless)
      w.fail(i, lane, format("race: writes shared offset %td, which warp %d wrote since the last barrier", s - seen_.data(), s->writer));
    if (s->read == epoch_ && s->readers & ~(1u << w.id) && !harmless)
      w.fail(i, lane, format("race: writes shared offset %td, which warps 0x%x read since the last barrier", s - seen_.data(), s->readers));
    s->written = epoch_;
    s->writer = static_cast<u8>(w.id);
    s->kind = kind;
    s->pending = kind == COPY;
    s->fences = w.proxy_fences;
  }
}

// The matrix unit reads through another proxy. Between a write and that, the writer fences before the barrier or the
// reader after it.
void Shared::reading_by_matrix_unit(const Warp& w, const Instruction& i, const char* p, u32 bytes, Counts& counts) {
  reading(w, i, -1, p, bytes);
  if (seen_.empty()) return;
  const Seen* s = &seen_[static_cast<size_t>(p - data())];
  for (u32 n = 0; n < bytes; n++, s++) {
    bool fenced = !s->written || s->fences != w.block->warps[s->writer].proxy_fences || w.proxy_fence_epoch > s->written;
    if (fenced) continue;
    if (s->kind != COPY) w.fail(i, -1, "wgmma reads shared memory that was written without a proxy fence");
    counts.unfenced++;
  }
}

void Shared::copied(u32 offset, u32 bytes) {
  for (u32 n = offset; n < offset + bytes && !seen_.empty(); n++) {
    seen_[n].pending = false;
    seen_[n].written = epoch_;
  }
}

}  // namespace ptx
