// A decoded buffer argument: where the bytes are, and the hold that keeps them there until the end of the scope.
// Every use, its end included, needs the GIL.
#pragma once
#include <Python.h>

#include <cstdint>
#include <utility>

namespace mpx::python {

struct Message {
    void *address = nullptr;
    int64_t count = 0;             // items of `datatype`
    int64_t nbytes = 0;            // count * size
    PyObject *datatype = nullptr;  // borrowed: datatypes live as long as the process
    Py_buffer view;
    bool has_view = false;
    PyObject *owner = nullptr;  // keeps exotic memory (DLPack, array interfaces) alive; owned reference

    Message() = default;  // `view` has no value until there is one
    ~Message() { release(); }
    Message(const Message &) = delete;
    Message &operator=(const Message &) = delete;

    void release() noexcept {
        if (std::exchange(has_view, false)) PyBuffer_Release(&view);
        if (!owner) return;
        PyObject *type, *value, *traceback;  // the owner's end may run Python code, which must not meet an exception
        PyErr_Fetch(&type, &value, &traceback);
        Py_CLEAR(owner);
        PyErr_Restore(type, value, traceback);
    }
    // Move the other's hold here; it keeps the numbers.
    void take(Message &other) noexcept {
        release();
        address = other.address;
        count = other.count;
        nbytes = other.nbytes;
        datatype = other.datatype;
        if (other.has_view) view = other.view;
        has_view = std::exchange(other.has_view, false);
        owner = std::exchange(other.owner, nullptr);
    }
};

}  // namespace mpx::python
