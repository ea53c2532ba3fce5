// See library.hh.
#include "library.hh"

#include <dlfcn.h>

#undef ibv_reg_mr

namespace mpx::verbs {

bool Library::load(std::string &why) {
    void *library = dlopen("libibverbs.so.1", RTLD_NOW | RTLD_LOCAL);  // stays loaded: pyverbs has it, too
    const auto find = [&](auto &function, const char *name) {
        void *symbol = library ? dlsym(library, name) : nullptr;
        function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(symbol);
        if (!symbol && why.empty()) why = std::string("verbs: libibverbs: ") + dlerror();
        return symbol != nullptr;
    };
    return find(modify_qp, "ibv_modify_qp") && find(reg_mr, "ibv_reg_mr") && find(dereg_mr, "ibv_dereg_mr") &&
           find(get_cq_event, "ibv_get_cq_event") && find(ack_cq_events, "ibv_ack_cq_events") &&
           find(get_async_event, "ibv_get_async_event") && find(ack_async_event, "ibv_ack_async_event") &&
           find(wc_status_str, "ibv_wc_status_str");
}

}  // namespace mpx::verbs
