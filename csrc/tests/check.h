// The test framework: checks print file, line and values and go on; `return check::result();` ends main.
#pragma once

#include <cmath>
#include <iostream>

namespace check {

inline int failures = 0;

template <typename A, typename B>
void that(bool holds, const char* where, const char* what, const A& a, const B& b) {
  if (holds || ++failures > 20) return;
  std::cerr << where << what << ": " << a << " against " << b << '\n';
}

template <typename A, typename B>
void equal(const char* where, const char* what, const A& a, const B& b) {
  that(a == b, where, what, a, b);
}

inline void near(const char* where, const char* what, double a, double b, double tolerance) {
  that(std::abs(a - b) <= tolerance, where, what, a, b);  // false for NaN
}

inline int result() {
  if (failures) std::cerr << failures << " checks failed\n";
  return failures ? 1 : 0;
}

}  // namespace check

#define CHECK_TEXT(x) #x
#define CHECK_LINE(x) CHECK_TEXT(x)
#define CHECK_WHERE __FILE__ ":" CHECK_LINE(__LINE__) ": "
#define CHECK(condition) check::equal(CHECK_WHERE, #condition, bool(condition), true)
#define CHECK_EQ(a, b) check::equal(CHECK_WHERE, #a " == " #b, a, b)
#define CHECK_NEAR(a, b, tolerance) check::near(CHECK_WHERE, #a " near " #b, a, b, tolerance)
