// What a launch throws when its threads do what a GPU leaves undefined.
#pragma once

#include <stdexcept>

namespace diffratio::simulator {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace diffratio::simulator
