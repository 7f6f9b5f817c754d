// PTX text to a kernel: registers get places in a warp's file, immediates become constants there.
#include <algorithm>
#include <cstring>
#include <regex>

#include "decode.h"

namespace ptx {

// ---- registers, constants, addresses

Decoder::Decoder(Kernel& kernel) : kernel_(kernel) {
  scopes_.emplace_back();
  kernel_.image.assign(8, 0);  // place 0 is no register
}

void Decoder::error(const string& what) const {
  throw Error(format("%s, PTX line %d: `%.300s`: ", kernel_.name.c_str(), line_, text_.c_str()) + what);
}

Place Decoder::allocate(int bytes) {
  Place place = static_cast<Place>(8 * kernel_.image.size());
  kernel_.image.resize(kernel_.image.size() + (bytes ? 4 * std::max(bytes, 2) : 8), POISON64);
  return place;
}

Place Decoder::constant(u64 value, int bytes) {
  auto [found, fresh] = constants_.try_emplace({value, bytes}, 0);
  if (fresh) {
    found->second = allocate(bytes);
    char* lanes = reinterpret_cast<char*>(kernel_.image.data()) + found->second;
    u32 mask = value ? ALL : 0;
    if (!bytes) std::memcpy(lanes, &mask, 4);
    for (int lane = 0; lane < (bytes ? 32 : 0); lane++) std::memcpy(lanes + lane * bytes, &value, bytes);
  }
  return found->second;
}

Register* Decoder::find(const string& name) {
  for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); scope++) {
    if (auto found = scope->registers.find(name); found != scope->registers.end()) return &found->second;
    auto digits = name.find_last_not_of("0123456789") + 1;
    auto family = scope->families.find(name.substr(0, digits));
    if (digits == name.size() || family == scope->families.end()) continue;
    auto [bytes, count] = family->second;
    if (std::stoi(name.substr(digits)) < count)
      return &(scope->registers[name] = {allocate(bytes), bytes});
  }
  static const std::regex special("%(n?tid|n?ctaid)\\.[xyz]|%laneid|%warpid|%lanemask_(lt|le|eq|ge|gt)");
  if (!std::regex_match(name, special)) return nullptr;
  Register& made = scopes_[0].registers[name] = {allocate(4), 4};
  kernel_.specials.push_back({name, made.place});
  return &made;
}

u64 Decoder::symbol(const string& name) const {
  auto found = symbols_.find(name);
  if (found == symbols_.end()) error("unknown name " + name);
  return found->second;
}

Place Decoder::operand(const string& s, int bytes) {
  if (s == "_") return allocate(bytes);
  if (s.starts_with('!')) {
    Instruction inverse = blank();
    inverse.execute = invert_predicate;
    inverse.guard = 0;
    inverse.out = allocate(0);
    inverse.in[0] = operand(s.substr(1), 0);
    push(inverse);
    return inverse.out;
  }
  if (Register* r = find(s)) {
    if (r->bytes != bytes) error(format("register %s has %d bytes instead of %d", s.c_str(), r->bytes, bytes));
    return r->place;
  }
  if (s.starts_with("0f") || s.starts_with("0F")) {
    u32 bits = static_cast<u32>(std::stoul(s.substr(2), nullptr, 16));
    return constant(bytes == 8 ? std::bit_cast<u64>(static_cast<double>(std::bit_cast<float>(bits))) : bits, bytes);
  }
  if (s.starts_with("0d") || s.starts_with("0D")) return constant(std::stoull(s.substr(2), nullptr, 16), bytes);
  if (is_integer(s)) {
    u64 bits = static_cast<u64>(integer(s));
    return constant(bytes == 0 || bytes == 8 ? bits : bits & ((1ull << 8 * bytes) - 1), bytes);
  }
  if (s.starts_with('%')) error("unknown register " + s);
  auto plus = s.find('+');
  u64 add = plus == string::npos ? 0 : static_cast<u64>(integer(trimmed(s.substr(plus + 1))));
  return constant(symbol(trimmed(s.substr(0, plus))) + add, bytes);
}

// [register + offset], [name + offset] or [number]
void Decoder::address(const string& s, Instruction& i, Place& base) {
  if (!s.starts_with('[') || !s.ends_with(']')) error("an address is wanted instead of " + s);
  string name = trimmed(s.substr(1, s.size() - 2));
  i.offset = 0;
  if (auto plus = name.find('+'); plus != string::npos) {
    i.offset = integer(trimmed(name.substr(plus + 1)));
    name = trimmed(name.substr(0, plus));
  }
  Register* r = find(name);
  if (r && r->bytes != 4 && r->bytes != 8) error(name + " holds no address");
  i.address_bytes = static_cast<u8>(r ? r->bytes : 8);
  base = operand(name, i.address_bytes);
}

Instruction Decoder::blank() const {
  Instruction i;
  i.line = line_;
  i.text = text_;
  return i;
}

void Decoder::branch_to(const string& label) {
  scopes_.back().branches.push_back({static_cast<int>(kernel_.code.size()), label, line_});
}

// Branches of the scope that ends, to its labels or to those of the scopes around it.
void Decoder::close_scope() {
  Scope scope = std::move(scopes_.back());
  scopes_.pop_back();
  for (auto& branch : scope.branches) {
    auto found = scope.labels.find(branch.label);
    if (found != scope.labels.end()) {
      kernel_.code[branch.at].target = found->second;
    } else if (scopes_.size() > 1) {
      scopes_.back().branches.push_back(branch);
    } else {
      line_ = branch.line;
      text_ = kernel_.code[branch.at].text;
      error("no label " + branch.label);
    }
  }
}

// ---- text

static int alignment_in(const vector<string>& words, int otherwise) {
  auto found = std::find(words.begin(), words.end(), ".align");
  return found == words.end() ? otherwise : std::stoi(found[1]);
}

static int element_bytes(const vector<string>& words) {
  for (auto& word : words)
    if (Type type = type_named(word.substr(1)); word[0] == '.' && type.bits >= 8) return type.bytes();
  return 1;
}

static int count_in(const string& declared) {  // 4 of "name[4]", 0 of "name[]", 1 of "name"
  auto open = declared.find('[');
  if (open == string::npos) return 1;
  return declared[open + 1] == ']' ? 0 : std::stoi(declared.substr(open + 1));
}

void Decoder::directive(const string& s) {
  auto parts = words(s);
  if (parts[0] == ".reg") {
    Type type = type_named(parts.at(1).substr(1));
    if (!type.kind) error("unknown type of register");
    int bytes = type.kind == 'p' ? 0 : type.bytes();
    string names;
    for (size_t n = 2; n < parts.size(); n++) names += parts[n];
    for (auto& name : split(names, ',')) {
      auto open = name.find('<');
      if (open == string::npos) {
        scopes_.back().registers[name] = {allocate(bytes), bytes};
      } else {
        scopes_.back().families[name.substr(0, open)] = {bytes, std::stoi(name.substr(open + 1))};
      }
    }
    return;
  }
  bool shared = std::find(parts.begin(), parts.end(), ".shared") != parts.end();
  bool local = parts[0] == ".local";
  if (!shared && !local) {
    static const std::regex harmless("\\.(pragma|maxntid|maxnreg|minnctapersm|reqntid|loc|file|section)");
    if (!std::regex_match(parts[0], harmless)) error("this directive is not known");
    return;
  }
  string declared = parts.back(), name = declared.substr(0, declared.find('['));
  u32 bytes = element_bytes(parts) * count_in(declared), alignment = alignment_in(parts, element_bytes(parts));
  if (bytes == 0 || parts[0] == ".extern") {
    dynamic_.push_back(name);
    return;
  }
  u32& used = local ? kernel_.local_bytes : kernel_.shared_bytes;
  used = (used + alignment - 1) / alignment * alignment;
  symbols_[name] = (local ? 0 : SHARED_BASE) + used;
  used += bytes;
}

void Decoder::parameters(const string& list) {
  for (auto& one : split(list, ',')) {
    auto parts = words(one);
    string name = parts.back().substr(0, parts.back().find('['));
    u32 bytes = element_bytes(parts), alignment = alignment_in(parts, bytes);
    if (parts.back().find('[') == string::npos) alignment = bytes;  // .ptr .align is about what it points to
    u32& used = kernel_.parameter_bytes;
    used = (used + alignment - 1) / alignment * alignment;
    symbols_[name] = used;
    bytes *= static_cast<u32>(count_in(parts.back()));
    kernel_.parameters.push_back({used, bytes});
    used += bytes;
  }
}

void Decoder::statement(const string& s) {
  text_ = s;
  string rest = s;
  Instruction i = blank();
  guarded_ = s.starts_with('@');
  if (guarded_) {
    auto end = s.find_first_of(" \t");
    string name = s.substr(1, end - 1);
    i.negated = name.starts_with('!');
    i.guard = operand(i.negated ? name.substr(1) : name, 0);
    rest = trimmed(s.substr(end));
  }
  auto end = rest.find_first_of(" \t{");
  Form form(rest.substr(0, end));
  Operands operands = end == string::npos ? Operands() : split(trimmed(rest.substr(end)), ',');
  bool known = false;
  try {
    for (auto decode : {decode_arithmetic, decode_convert, decode_memory, decode_control, decode_matrix})
      if ((known = decode(*this, form, operands, i))) break;
  } catch (std::logic_error& e) {  // an operand that is not there, a number that is none
    error(string("operands: ") + e.what());
  }
  if (!known || !i.execute) error("this instruction is not known");
  if (!form.empty()) error("this form of the instruction is not known: " + form.rest());
  push(i);
}

static string without_comments(const string& text) {  // lines keep their numbers
  string out;
  for (size_t n = 0; n < text.size(); n++) {
    if (text.compare(n, 2, "//") == 0) {
      n = std::min(text.find('\n', n), text.size());
      out += '\n';
    } else if (text.compare(n, 2, "/*") == 0) {
      auto end = std::min(text.find("*/", n), text.size());
      out.append(std::count(text.begin() + n, text.begin() + end, '\n'), '\n');
      n = end + 1;
    } else {
      out += text[n];
    }
  }
  return out;
}

static size_t start_of(const string& text, const string& entry, string& name) {
  for (size_t at = text.find(".entry"); at != string::npos; at = text.find(".entry", at + 1)) {
    name = trimmed(text.substr(at + 6, text.find('(', at) - at - 6));
    if (entry.empty() || name == entry) return at;
  }
  throw Error("no .entry " + entry);
}

void Decoder::kernel(const string& source, const string& entry) {
  string text = without_comments(source);
  size_t start = start_of(text, entry, kernel_.name);
  auto open = text.find('(', start), close = text.find(')', open);
  size_t n = text.find('{', close) + 1, end = n;
  for (int depth = 1; depth && end < text.size(); end++) depth += (text[end] == '{') - (text[end] == '}');
  string body = text.substr(n, end - n);
  // Shared memory is declared in the kernel or outside; what the kernel does not name is another one's.
  static const std::regex shared("(?:\\.(?:extern|visible|weak)\\s+)?\\.shared\\s[^;]*?([\\w$]+)(?:\\[\\d*\\])?;");
  for (std::sregex_iterator found(text.begin(), text.end(), shared), last; found != last; found++) {
    string whole = found->str();
    if (body.find((*found)[1]) != string::npos) directive(whole.substr(0, whole.size() - 1));
  }
  kernel_.shared_bytes = (kernel_.shared_bytes + 15) & ~15;
  for (auto& name : dynamic_) symbols_[name] = SHARED_BASE + kernel_.shared_bytes;
  parameters(text.substr(open + 1, close - open - 1));
  line_ = 1 + static_cast<int>(std::count(text.begin(), text.begin() + n, '\n'));
  auto go = [&](size_t to) {
    line_ += static_cast<int>(std::count(text.begin() + n, text.begin() + to, '\n'));
    n = to;
  };
  scopes_.emplace_back();
  while (scopes_.size() > 1) {
    if (n >= text.size()) throw Error(kernel_.name + ": the kernel does not end");
    if (isspace(static_cast<unsigned char>(text[n])) || text[n] == ';') {
      go(n + 1);
    } else if (text[n] == '{') {
      scopes_.emplace_back();
      go(n + 1);
    } else if (text[n] == '}') {
      close_scope();
      go(n + 1);
    } else {
      static const std::regex label("([\\w$]+):(?!:)");
      std::smatch found;
      auto here = text.cbegin() + static_cast<i64>(n);
      if (std::regex_search(here, text.cend(), found, label, std::regex_constants::match_continuous)) {
        scopes_.back().labels[found[1]] = static_cast<int>(kernel_.code.size());
        go(n + found.length());
        continue;
      }
      // .loc ends with its line, all else with a semicolon
      auto end = text.compare(n, 4, ".loc") == 0 ? text.find('\n', n) : text.find(';', n);
      if (end == string::npos) throw Error(kernel_.name + ": the kernel does not end");
      string whole = text.substr(n, end - n);
      std::replace_if(whole.begin(), whole.end(), [](unsigned char c) { return isspace(c); }, ' ');
      whole = trimmed(whole);
      static const std::regex is_shared("\\.(extern |visible |weak )?.*\\.shared .*|\\.shared .*");
      if (whole.starts_with('.')) {
        text_ = whole;
        if (!std::regex_match(whole, is_shared)) directive(whole);
      } else {
        statement(whole);
      }
      go(end);
    }
  }
  statement("ret");
}

std::unique_ptr<Kernel> parse(const string& text, const string& entry) {
  auto kernel = std::make_unique<Kernel>();
  Decoder(*kernel).kernel(text, entry);
  return kernel;
}

}  // namespace ptx
