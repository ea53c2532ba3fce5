// Predefined reductions: inout[i] = in[i] op inout[i], as MPI_Reduce_local.
#pragma once
#include <cstddef>
#include <cstdint>

namespace mpx {

enum class ReduceOp : uint8_t { kSum, kProd, kMin, kMax, kLand, kLor, kLxor, kBand, kBor, kBxor, kMinloc, kMaxloc, kReplace, kNoOp };

enum class ElementType : uint8_t {
    kInt8,
    kInt16,
    kInt32,
    kInt64,
    kUint8,
    kUint16,
    kUint32,
    kUint64,
    kFloat,
    kDouble,
    kLongDouble,
    kComplexFloat,
    kComplexDouble,
    kComplexLongDouble,
    kBool,
    kByte,
    kFloatInt,
    kDoubleInt,
    kLongInt,
    kIntInt,
    kShortInt,
    kLongDoubleInt,  // pairs for MINLOC, MAXLOC
    kNone,           // data that no predefined operation applies to
};

using ReduceFn = void (*)(const void *in, void *inout, size_t count);

// nullptr where MPI does not define the operation for the type (MPI 4.1, section 6.9.2).
ReduceFn reduce_function(ReduceOp op, ElementType type);

}  // namespace mpx
