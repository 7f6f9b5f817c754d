// From the text of an instruction to its function and the places of its operands.
#pragma once
#include <initializer_list>

#include "machine.h"

namespace ptx {

struct Type {
  char kind = 0;  // b u s: integers; f: fp32, fp64; h y: f16, bf16; H Y: pairs of them; S: pairs of s16; p
  int bits = 0;
  int bytes() const { return bits / 8; }
  bool integer() const { return kind == 'b' || kind == 'u' || kind == 's'; }
};
Type type_named(const string&);  // kind 0: no type

string trimmed(const string&);
vector<string> split(const string&, char by);   // not inside of braces or brackets
vector<string> elements(const string& operand); // of {a, b}, or the operand itself
vector<string> words(string);                   // between spaces
bool is_integer(const string&);
i64 integer(string);

// The parts of an opcode, "ld.global.v4.b32". What an instruction's decoder takes is gone; what is left at the
// end is a modifier that nobody knows.
class Form {
 public:
  explicit Form(const string& opcode);
  const string& name() const { return name_; }
  bool take(const string& part);
  string take_one(std::initializer_list<const char*> parts);  // "" where none of them is there
  Type take_type();                                           // the last part
  bool empty() const { return parts_.empty(); }
  string rest() const;

 private:
  string name_;
  vector<string> parts_;
};

struct Register {
  Place place;
  int bytes;  // of one lane; 0: a predicate
};

struct Scope {  // { ... }
  std::map<string, Register> registers;
  std::map<string, std::pair<int, int>> families;  // "%r" of ".reg .b32 %r<9>" -> bytes and count
  std::map<string, int> labels;
  struct Branch {
    int at;
    string label;
    int line;
  };
  vector<Branch> branches;
};

class Decoder {
 public:
  explicit Decoder(Kernel&);
  void kernel(const string& text, const string& entry);
  [[noreturn]] void error(const string& what) const;

  // Operands. `bytes`: of one lane, 0 for a predicate. Registers are as wide as the instruction says.
  Place operand(const string&, int bytes);
  Place result(const string& name, int bytes) { return operand(name, bytes); }
  Register* find(const string& name);
  Place allocate(int bytes);
  void address(const string&, Instruction&, Place& base);
  void push(Instruction instruction) { kernel_.code.push_back(std::move(instruction)); }
  void branch_to(const string& label);
  // The instruction that is being decoded, for one that takes several.
  Instruction blank() const;
  bool guarded() const { return guarded_; }

 private:
  Kernel& kernel_;
  vector<Scope> scopes_;
  std::map<std::pair<u64, int>, Place> constants_;
  std::map<string, u64> symbols_;
  vector<string> dynamic_;  // names of shared memory whose size the launch decides
  string text_;
  int line_ = 0;
  bool guarded_ = false;

  Place constant(u64 value, int bytes);
  u64 symbol(const string& name) const;
  void parameters(const string&);
  void directive(const string&);
  void statement(const string&);
  void close_scope();
};

// Each decodes the instructions of a group, or says that the name is none of its own.
using Operands = vector<string>;
bool decode_arithmetic(Decoder&, Form&, const Operands&, Instruction&);
bool decode_integers(Decoder&, Form&, const Operands&, Instruction&, Type);
bool decode_floats(Decoder&, Form&, const Operands&, Instruction&, Type);
bool decode_convert(Decoder&, Form&, const Operands&, Instruction&);
bool decode_memory(Decoder&, Form&, const Operands&, Instruction&);
bool decode_control(Decoder&, Form&, const Operands&, Instruction&);
bool decode_matrix(Decoder&, Form&, const Operands&, Instruction&);

void move_predicate(Warp&, const Instruction&);
void invert_predicate(Warp&, const Instruction&);
template <class T>
void move_register(Warp& w, const Instruction& i) {
  T *to = w.lanes<T>(i.out), *from = w.lanes<T>(i.in[0]);
  each_lane(w.mask, [=](int l) { to[l] = from[l]; });
}

}  // namespace ptx
