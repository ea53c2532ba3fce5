// See reduce.h. One template per operation, one table row per type; the compiler vectorises the loops.
#include "reduce.h"

#include <complex>
#include <cstring>
#include <type_traits>

namespace mpx {
namespace {

template <class T> struct Pair {
    T value;
    int index;
};

template <class T> constexpr bool is_complex = false;
template <class T> constexpr bool is_complex<std::complex<T>> = true;
template <class T> constexpr bool is_pair = false;
template <class T> constexpr bool is_pair<Pair<T>> = true;

struct Byte {
    uint8_t bits;
};

// Buffers come from users and may be unaligned: elements are copied in and out; compilers fold this into plain moves.
template <class T, class F> void apply(const void *in, void *inout, size_t count, F f) {
    const char *a = static_cast<const char *>(in);
    char *b = static_cast<char *>(inout);
    for (size_t i = 0; i < count; i++) {
        T x, y;
        std::memcpy(&x, a + i * sizeof(T), sizeof(T));
        std::memcpy(&y, b + i * sizeof(T), sizeof(T));
        y = f(x, y);
        std::memcpy(b + i * sizeof(T), &y, sizeof(T));
    }
}

// Integer arithmetic wraps: computed unsigned, and at least as wide as unsigned int so that no promotion to int overflows.
template <class T> using Wrapping = std::make_unsigned_t<std::conditional_t<(sizeof(T) < sizeof(int)), int, T>>;

template <class T> T add(T x, T y) {
    if constexpr (std::is_integral_v<T>) return static_cast<T>(static_cast<Wrapping<T>>(x) + static_cast<Wrapping<T>>(y));
    else return x + y;
}
template <class T> T multiply(T x, T y) {
    if constexpr (std::is_integral_v<T>) return static_cast<T>(static_cast<Wrapping<T>>(x) * static_cast<Wrapping<T>>(y));
    else return x * y;
}

template <class T> void sum(const void *in, void *io, size_t n) {
    apply<T>(in, io, n, [](T x, T y) { return add(x, y); });
}
template <class T> void prod(const void *in, void *io, size_t n) {
    apply<T>(in, io, n, [](T x, T y) { return multiply(x, y); });
}
// A NaN on either side stays, whatever the order of operands.
template <class T> void min(const void *in, void *io, size_t n) {
    apply<T>(in, io, n, [](T x, T y) { return x < y || x != x ? x : y; });
}
template <class T> void max(const void *in, void *io, size_t n) {
    apply<T>(in, io, n, [](T x, T y) { return x > y || x != x ? x : y; });
}
template <class T> void land(const void *in, void *io, size_t n) {
    apply<T>(in, io, n, [](T x, T y) { return static_cast<T>(x && y); });
}
template <class T> void lor(const void *in, void *io, size_t n) {
    apply<T>(in, io, n, [](T x, T y) { return static_cast<T>(x || y); });
}
template <class T> void lxor(const void *in, void *io, size_t n) {
    apply<T>(in, io, n, [](T x, T y) { return static_cast<T>(!x != !y); });
}
template <class T> void band(const void *in, void *io, size_t n) {
    apply<T>(in, io, n, [](T x, T y) { return static_cast<T>(x & y); });
}
template <class T> void bor(const void *in, void *io, size_t n) {
    apply<T>(in, io, n, [](T x, T y) { return static_cast<T>(x | y); });
}
template <class T> void bxor(const void *in, void *io, size_t n) {
    apply<T>(in, io, n, [](T x, T y) { return static_cast<T>(x ^ y); });
}

template <class T> T located(T x, T y, bool x_wins) {
    if (x.value == y.value) {
        x.index = x.index < y.index ? x.index : y.index;
        return x;
    }
    return x_wins ? x : y;
}
template <class T> void minloc(const void *in, void *io, size_t n) {
    apply<T>(in, io, n, [](T x, T y) { return located(x, y, x.value < y.value); });
}
template <class T> void maxloc(const void *in, void *io, size_t n) {
    apply<T>(in, io, n, [](T x, T y) { return located(x, y, x.value > y.value); });
}
template <class T> void replace(const void *in, void *io, size_t n) { std::memcpy(io, in, n * sizeof(T)); }
void no_op(const void *, void *, size_t) {}

template <class T> ReduceFn function(ReduceOp op) {
    constexpr bool pair = is_pair<T>, byte = std::is_same_v<T, Byte>, boolean = std::is_same_v<T, bool>;
    constexpr bool arithmetic = !pair && !byte;
    constexpr bool integral = std::is_integral_v<T>;
    switch (op) {
        case ReduceOp::kSum:
            if constexpr (arithmetic && !boolean) return sum<T>;
            break;
        case ReduceOp::kProd:
            if constexpr (arithmetic && !boolean) return prod<T>;
            break;
        case ReduceOp::kMin:
            if constexpr (arithmetic && !is_complex<T> && !boolean) return min<T>;
            break;
        case ReduceOp::kMax:
            if constexpr (arithmetic && !is_complex<T> && !boolean) return max<T>;
            break;
        case ReduceOp::kLand:
            if constexpr (arithmetic && !is_complex<T>) return land<T>;
            break;
        case ReduceOp::kLor:
            if constexpr (arithmetic && !is_complex<T>) return lor<T>;
            break;
        case ReduceOp::kLxor:
            if constexpr (arithmetic && !is_complex<T>) return lxor<T>;
            break;
        case ReduceOp::kBand:
            if constexpr (integral) return band<T>;
            else if constexpr (byte) return band<uint8_t>;
            break;
        case ReduceOp::kBor:
            if constexpr (integral) return bor<T>;
            else if constexpr (byte) return bor<uint8_t>;
            break;
        case ReduceOp::kBxor:
            if constexpr (integral) return bxor<T>;
            else if constexpr (byte) return bxor<uint8_t>;
            break;
        case ReduceOp::kMinloc:
            if constexpr (pair) return minloc<T>;
            break;
        case ReduceOp::kMaxloc:
            if constexpr (pair) return maxloc<T>;
            break;
        case ReduceOp::kReplace: return replace<T>;
        case ReduceOp::kNoOp: return no_op;
    }
    return nullptr;
}

}  // namespace

ReduceFn reduce_function(ReduceOp op, ElementType type) {
    switch (type) {
        case ElementType::kInt8: return function<int8_t>(op);
        case ElementType::kInt16: return function<int16_t>(op);
        case ElementType::kInt32: return function<int32_t>(op);
        case ElementType::kInt64: return function<int64_t>(op);
        case ElementType::kUint8: return function<uint8_t>(op);
        case ElementType::kUint16: return function<uint16_t>(op);
        case ElementType::kUint32: return function<uint32_t>(op);
        case ElementType::kUint64: return function<uint64_t>(op);
        case ElementType::kFloat: return function<float>(op);
        case ElementType::kDouble: return function<double>(op);
        case ElementType::kLongDouble: return function<long double>(op);
        case ElementType::kComplexFloat: return function<std::complex<float>>(op);
        case ElementType::kComplexDouble: return function<std::complex<double>>(op);
        case ElementType::kComplexLongDouble: return function<std::complex<long double>>(op);
        case ElementType::kBool: return function<bool>(op);
        case ElementType::kByte: return function<Byte>(op);
        case ElementType::kFloatInt: return function<Pair<float>>(op);
        case ElementType::kDoubleInt: return function<Pair<double>>(op);
        case ElementType::kLongInt: return function<Pair<long>>(op);
        case ElementType::kIntInt: return function<Pair<int>>(op);
        case ElementType::kShortInt: return function<Pair<short>>(op);
        case ElementType::kLongDoubleInt: return function<Pair<long double>>(op);
        case ElementType::kNone: return nullptr;
    }
    return nullptr;
}

}  // namespace mpx
