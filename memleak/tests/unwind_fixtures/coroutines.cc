// C++20 coroutines: bodies that run on their resumer's stack, in the first call, in a resumption and in a chain of them.
#include <coroutine>
#include <cstdlib>
#include <exception>
#include <utility>

#define NOINLINE __attribute__((noinline, noclone))

void *volatile kept;
volatile int sink;

NOINLINE void keep(int size) {
    kept = malloc(size);
    sink = sink + size;
}

// Yields numbers.
struct Generator {
    struct promise_type {
        int value = 0;
        Generator get_return_object() { return {std::coroutine_handle<promise_type>::from_promise(*this)}; }
        std::suspend_always initial_suspend() { return {}; }
        std::suspend_always final_suspend() noexcept { return {}; }
        std::suspend_always yield_value(int next) {
            value = next;
            keep(100 + next);
            return {};
        }
        void return_void() {}
        void unhandled_exception() { std::terminate(); }
    };
    std::coroutine_handle<promise_type> handle;
};

Generator count_to(int last) {
    keep(1);
    for (int number = 0; number < last; number++) {
        co_yield number;
        keep(10 + number);
    }
}

// A task that its awaiter hands over to, and that hands back when it is done.
struct Task {
    struct promise_type {
        std::coroutine_handle<> awaiter = std::noop_coroutine();
        Task get_return_object() { return {std::coroutine_handle<promise_type>::from_promise(*this)}; }
        std::suspend_always initial_suspend() { return {}; }
        auto final_suspend() noexcept {
            struct HandBack {
                bool await_ready() noexcept { return false; }
                std::coroutine_handle<> await_suspend(std::coroutine_handle<promise_type> done) noexcept {
                    return done.promise().awaiter;
                }
                void await_resume() noexcept {}
            };
            return HandBack{};
        }
        void return_void() {}
        void unhandled_exception() { std::terminate(); }
    };
    std::coroutine_handle<promise_type> handle;
    bool await_ready() { return false; }
    std::coroutine_handle<> await_suspend(std::coroutine_handle<> awaiter) {
        handle.promise().awaiter = awaiter;
        return handle;
    }
    void await_resume() {}
};

Task nested(int depth) {
    keep(1000 + depth);
    if (depth > 0) co_await nested(depth - 1);
    keep(2000 + depth);
}

NOINLINE void resume(std::coroutine_handle<> handle) {
    handle.resume();
    sink = sink + 1;
}

int main() {
    Generator numbers = count_to(3);
    while (!numbers.handle.done()) resume(numbers.handle);
    resume(nested(5).handle);
    return sink == 0;
}
