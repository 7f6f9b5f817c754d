// The machine: the instructions of a kernel, and one block's warps, registers, memories and barriers.
#pragma once
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "values.h"

namespace ptx {

using std::string;
using std::vector;

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};
string format(const char* text, ...) __attribute__((format(printf, 1, 2)));

constexpr u32 ALL = 0xFFFFFFFFu;
// What nobody has written: NaN as fp64, fp32 and as pairs of 16-bit floats, and an address of no tensor.
constexpr u16 POISON = 0x7FFF;
constexpr u32 POISON32 = 0x7FFF7FFFu;
constexpr u64 POISON64 = 0x7FFF7FFF7FFF7FFFull;
// Shared memory begins here, as on sm_80 and later; a null pointer is outside of it.
constexpr u32 SHARED_BASE = 1024;
// Generic addresses of shared and local memory lie in windows of their own.
constexpr u64 SHARED_WINDOW = 1ull << 56, LOCAL_WINDOW = 2ull << 56;

// ---- a kernel

struct Warp;
struct Instruction;
using Execute = void (*)(Warp&, const Instruction&);
// Where a register lies in the file of a warp, in bytes: 32 lanes of it, or the mask of a predicate. 0: none.
using Place = u32;

struct Instruction {
  Execute execute = nullptr;
  Place guard = 0;                   // the predicate of @p
  bool negated = false;              // @!p
  u8 kind = 0, count = 0, flags = 0; // as the instruction's group defines them
  u8 address_bytes = 8;              // of the register that holds the address
  Place out = 0, also = 0;           // the result, and a second one
  Place in[4] = {};
  vector<Place> list;                // a vector operand, or matrix fragments
  i64 number = 0, offset = 0;        // an immediate; what is added to the address
  int target = -1;                   // of a branch
  int line = 0;
  string text;
  mutable bool executed = false;     // by any lane so far
};

struct Kernel {
  string name;
  vector<Instruction> code;
  vector<u64> image;                          // of a warp's registers: poison, and constants in every lane
  vector<std::pair<string, Place>> specials;  // %tid.x and the like
  vector<std::pair<u32, u32>> parameters;     // offset and bytes of each
  u32 parameter_bytes = 0, shared_bytes = 0, local_bytes = 0;
};
std::unique_ptr<Kernel> parse(const string& text, const string& entry);

// ---- a launch

struct Range {  // of addresses, [begin, end)
  u64 begin, end;
};
enum class When : u8 { EARLY, LATE, RANDOM };  // asynchronous work is done when issued, or only when waited for

struct Launch {
  explicit Launch(const Kernel& kernel) : kernel(kernel) {}
  const Kernel& kernel;
  u32 grid[3] = {1, 1, 1}, block[3] = {32, 1, 1};
  u32 dynamic_shared = 0;
  u32 seed = 0;                  // of the order of blocks and warps, and of all that is random
  When copies = When::RANDOM, products = When::RANDOM;
  bool races = true;             // look for races in shared memory
  bool truncate = false;         // matrix units round sums towards zero
  bool noise = false;            // what a GPU approximates is off by as much as PTX allows
  u32 turn = 64;                 // instructions at most before another warp has its turn
  u32 threads = 1;               // of the host
  vector<Range> ranges;          // what may be touched of global memory, sorted
  vector<char> parameters;
};

struct Counts {
  i64 instructions = 0;  // of warps
  i64 unfenced = 0;      // bytes that wgmma reads after cp.async without a proxy fence
  i64 overwritten = 0;   // registers of A that change while wgmma may read them
  i64 moved = 0;         // accumulators that are moved while wgmma may write them
  void add(const Counts&);
};
Counts run(const Launch&);

// ---- the state of a block

struct Block;

// Bytes of shared memory, and who wrote and read each of them since which barrier.
class Shared {
 public:
  enum Writer : u8 { STORE = 1, ATOMIC, COPY };

  void resize(u32 bytes, bool watched);
  void poison();
  u32 size() const { return static_cast<u32>(bytes_.size()); }
  char* data() { return bytes_.data(); }
  // The place of an access; an error if it is outside or not aligned.
  char* at(const Warp&, const Instruction&, int lane, u64 address, u32 bytes, u32 alignment);
  // To be called before bytes are read or written; `value`: what will be written, where the same may be there.
  void reading(const Warp&, const Instruction&, int lane, const char*, u32 bytes);
  void writing(const Warp&, const Instruction&, int lane, const char*, u32 bytes, Writer, const void* value);
  void reading_by_matrix_unit(const Warp&, const Instruction&, const char*, u32 bytes, Counts&);
  void copied(u32 offset, u32 bytes);  // a copy has arrived
  void barrier() { epoch_++; }
  u32 epoch() const { return epoch_; }

 private:
  struct Seen {                            // of one byte
    u32 written = 0, read = 0;             // epochs, the number of barriers passed
    u32 readers = 0;                       // warps, in the epoch `read`
    u32 fences = 0;                        // the writer's count of proxy fences when it wrote
    u8 writer = 0, kind = 0;
    bool pending = false;                  // an asynchronous copy will still write it
  };
  vector<char> bytes_;
  vector<Seen> seen_;
  u32 epoch_ = 1;
};

struct Copy {  // cp.async in flight
  int lane;
  u32 to, size, bytes;  // bytes: of the source; zeros fill the rest
  u64 from;
  u32 group;
  bool done;  // when issued
};

struct Product {  // wgmma in flight
  const Instruction* instruction;
  u64 a, b;               // descriptors
  bool accumulate;
  u32 group;
  vector<u32> fragment;   // of A, where it comes from registers
};

struct Fragment {  // lanes of a warp at one instruction
  int pc;
  u32 lanes;
  bool waits;  // for other lanes of the warp, at a collective instruction
};

struct Warp {
  Block* block = nullptr;
  int id = 0;
  vector<u64> file;
  vector<char> local;
  int pc = 0;
  u32 mask = 0;    // lanes that execute this instruction
  u32 active = 0;  // lanes at `pc`
  u32 alive = 0;
  bool waits = false;
  int barrier = -1;            // at which the warp waits
  vector<Fragment> elsewhere;  // the other lanes

  vector<Copy> copies;
  u32 copy_group[32] = {};
  vector<Product> products;
  u32 product_group = 0, products_done = 0;
  bool registers_fenced = false;                // wgmma.fence
  u32 proxy_fences = 0, proxy_fence_epoch = 0;
  std::map<Place, vector<float>> accumulators;  // of products in flight; their registers hold poison
  std::map<Place, Place> moved;                 // register -> the accumulator in flight that was moved into it

  template <class T>
  T* lanes(Place place) {
    return reinterpret_cast<T*>(reinterpret_cast<char*>(file.data()) + place);
  }
  u32& predicate(Place place) { return *lanes<u32>(place); }
  void set_predicate(Place place, u32 bits) {
    u32& p = predicate(place);
    p = (p & ~mask) | (bits & mask);
  }
  int first_lane() const { return std::countr_zero(mask); }

  void start(int lanes);
  // Whether the lanes that a collective instruction needs are all here; if not, this fragment waits for them.
  bool together(const Instruction&, u32 members = ALL);
  void branch(int target);
  void leave();
  void choose();
  [[noreturn]] void fail(const Instruction&, int lane, const string& what) const;
};

struct Block {
  const Launch& launch;
  u32 index[3] = {};
  Shared shared;
  vector<Warp> warps;
  u32 arrived[16] = {}, expected[16] = {};
  std::mt19937 random;
  Counts counts;

  explicit Block(const Launch&);
  void run(u32 x, u32 y, u32 z);
  bool late(When when) { return when == When::RANDOM ? random() & 1 : when == When::LATE; }
  // The place of an access to global memory or, by a generic address, to another one.
  char* global(Warp&, const Instruction&, int lane, u64 address, u32 bytes, u32 alignment);

 private:
  Range last_ = {1, 0};
  void turn(Warp&, u32 instructions);
  void open_barriers();
  [[noreturn]] void deadlock();
};

void start_copy(Warp&, const Instruction&, const Copy&);
// Copies of the executing lanes arrive, but those of their `keep` newest groups; `all`: also those in no group.
void finish_copies(Warp&, const Instruction&, u32 keep, bool all);
void move_in_flight(Warp&, Place to, Place from);

// For every lane that executes: a loop without branches where all do.
template <class F>
inline __attribute__((always_inline)) void each_lane(u32 mask, F f) {
  if (mask == ALL) {
#pragma GCC ivdep
    for (int lane = 0; lane < 32; lane++) f(lane);
  } else {
    for (u32 rest = mask; rest; rest &= rest - 1) f(std::countr_zero(rest));
  }
}

}  // namespace ptx
