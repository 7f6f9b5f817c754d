// Words of PTX: operands, opcodes, types and numbers.
#include <algorithm>
#include <cstdarg>
#include <regex>

#include "decode.h"

namespace ptx {

string format(const char* text, ...) {
  char buffer[2048];
  va_list arguments;
  va_start(arguments, text);
  vsnprintf(buffer, sizeof buffer, text, arguments);
  va_end(arguments);
  return buffer;
}

string trimmed(const string& s) {
  auto first = s.find_first_not_of(" \t\r\n"), last = s.find_last_not_of(" \t\r\n");
  return first == string::npos ? "" : s.substr(first, last - first + 1);
}

vector<string> split(const string& s, char by) {
  vector<string> parts;
  string part;
  int depth = 0;
  for (char c : s) {
    depth += (c == '{' || c == '[') - (c == '}' || c == ']');
    if (c == by && depth == 0) {
      parts.push_back(trimmed(part));
      part.clear();
    } else {
      part += c;
    }
  }
  if (!trimmed(part).empty()) parts.push_back(trimmed(part));
  return parts;
}

vector<string> elements(const string& operand) {
  return operand.starts_with('{') ? split(operand.substr(1, operand.size() - 2), ',') : vector<string>{operand};
}

vector<string> words(string s) {
  for (char& c : s)
    if (isspace(static_cast<unsigned char>(c))) c = ' ';
  auto parts = split(s, ' ');
  std::erase(parts, "");
  return parts;
}

bool is_integer(const string& s) {
  return !s.empty() && (isdigit(static_cast<unsigned char>(s[0])) ||
                        (s.size() > 1 && s[0] == '-' && isdigit(static_cast<unsigned char>(s[1]))));
}

i64 integer(string s) {
  while (!s.empty() && (s.back() == 'U' || s.back() == 'u')) s.pop_back();
  bool minus = s.starts_with('-');
  u64 size = std::stoull(minus ? s.substr(1) : s, nullptr, 0);
  return static_cast<i64>(minus ? 0 - size : size);
}

Type type_named(const string& s) {
  static const std::map<string, Type> named = {
      {"pred", {'p', 1}},    {"f16", {'h', 16}},   {"bf16", {'y', 16}},  {"f16x2", {'H', 32}},
      {"bf16x2", {'Y', 32}}, {"s16x2", {'S', 32}}, {"u16x2", {'S', 32}},
  };
  if (auto found = named.find(s); found != named.end()) return found->second;
  static const std::regex simple("[busf](8|16|32|64)");
  if (!std::regex_match(s, simple)) return {};
  return {s[0], std::stoi(s.substr(1))};
}

// ---- opcodes

Form::Form(const string& opcode) : parts_(split(opcode, '.')) {
  name_ = parts_.empty() ? "" : parts_[0];
  if (!parts_.empty()) parts_.erase(parts_.begin());
}

bool Form::take(const string& part) {
  auto found = std::find(parts_.begin(), parts_.end(), part);
  if (found == parts_.end()) return false;
  parts_.erase(found);
  return true;
}

string Form::take_one(std::initializer_list<const char*> parts) {
  for (auto part : parts)
    if (take(part)) return part;
  return "";
}

Type Form::take_type() {
  Type type = parts_.empty() ? Type{} : type_named(parts_.back());
  if (type.kind) parts_.pop_back();
  return type;
}

string Form::rest() const {
  string all;
  for (auto& part : parts_) all += "." + part;
  return all;
}

}  // namespace ptx
