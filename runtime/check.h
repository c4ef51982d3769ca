// SPDX-License-Identifier: Apache-2.0
//
// CUBIT_CHECK: contracts of our own code, always on. A failed check prints the
// condition, the values and a stack trace, and aborts. What a user or the
// outside world can cause is never a check but an absl::Status.

#ifndef CUBIT_RUNTIME_CHECK_H_
#define CUBIT_RUNTIME_CHECK_H_

#include <sstream>
#include <string>

namespace cubit {

// What a process does last before a failed check or another fatal error ends
// it, with the error's message: the watchdog tells the other ranks. One hook
// for the process; may be called from any thread. Returns the one before (null
// at first).
using FatalHook = void (*)(const char* message);
FatalHook SetFatalHook(FatalHook hook);
// For code that ends the process itself. The hook is called once in the life
// of a process: not for what goes wrong in it.
void CallFatalHook(const char* message);

namespace check_internal {

// Collects the message of a failed check and aborts when it is destroyed.
class Failure {
 public:
  Failure(const char* file, int line, const std::string& condition);
  [[noreturn]] ~Failure();
  Failure(const Failure&) = delete;
  Failure& operator=(const Failure&) = delete;

  std::ostream& stream() { return stream_; }

 private:
  std::ostringstream stream_;
};

// Gives the streamed expression type void, so that ?: has equal arms.
struct Voidify {
  void operator&(std::ostream&) {}
};

template <typename A, typename B>
std::string Describe(const char* text, const A& a, const B& b) {
  std::ostringstream out;
  out << text << " (" << a << " vs. " << b << ")";
  return out.str();
}

}  // namespace check_internal
}  // namespace cubit

#define CUBIT_CHECK(condition)                                               \
  (condition)                                                                \
      ? (void)0                                                              \
      : ::cubit::check_internal::Voidify() &                                 \
            ::cubit::check_internal::Failure(__FILE__, __LINE__, #condition) \
                .stream()

#define CUBIT_CHECK_OP_(op, a, b)                                           \
  ((a)op(b)) ? (void)0                                                      \
             : ::cubit::check_internal::Voidify() &                         \
                   ::cubit::check_internal::Failure(                        \
                       __FILE__, __LINE__,                                  \
                       ::cubit::check_internal::Describe(#a " " #op " " #b, \
                                                         (a), (b)))         \
                       .stream()

#define CUBIT_CHECK_EQ(a, b) CUBIT_CHECK_OP_(==, a, b)
#define CUBIT_CHECK_NE(a, b) CUBIT_CHECK_OP_(!=, a, b)
#define CUBIT_CHECK_LT(a, b) CUBIT_CHECK_OP_(<, a, b)
#define CUBIT_CHECK_LE(a, b) CUBIT_CHECK_OP_(<=, a, b)
#define CUBIT_CHECK_GT(a, b) CUBIT_CHECK_OP_(>, a, b)
#define CUBIT_CHECK_GE(a, b) CUBIT_CHECK_OP_(>=, a, b)

// Checks an absl::Status or StatusOr that cannot fail here.
#define CUBIT_CHECK_OK(expression)                               \
  do {                                                           \
    const auto& cubit_check_ok_ = (expression);                  \
    CUBIT_CHECK(cubit_check_ok_.ok())                            \
        << ::cubit::check_internal::StatusText(cubit_check_ok_); \
  } while (false)

namespace cubit {
namespace check_internal {

template <typename T>
auto StatusText(const T& t) -> decltype(t.ToString()) {
  return t.ToString();
}
template <typename T>
auto StatusText(const T& t) -> decltype(t.status().ToString()) {
  return t.status().ToString();
}

}  // namespace check_internal
}  // namespace cubit

#endif  // CUBIT_RUNTIME_CHECK_H_
