// Objects of C++ that own each other in circles, by containers and closures, of types that no other
// file can see: three times each. Prints READY and waits.
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <unistd.h>

namespace {
struct Button {
    std::string label;
    std::function<void()> on_click;
};
struct Window {
    std::vector<std::shared_ptr<Button>> buttons;
    std::string title;
    virtual ~Window() {}
};
struct Parent;
struct Child {
    std::shared_ptr<Parent> parent;
    double numbers[7];
};
struct Parent {
    std::map<int, std::shared_ptr<Child>> children;
    long more[9];
};
}  // namespace

// A button that holds itself by what it does.
__attribute__((noinline)) void closures() {
    auto button = std::make_shared<Button>();
    button->label = "a label that is long enough for the heap";
    button->on_click = [button] { std::puts(button->label.c_str()); };
}

__attribute__((noinline)) void windows(int buttons) {
    auto window = std::make_shared<Window>();
    window->title = "a title that is long enough for the heap";
    for (int i = 0; i < buttons; i++) {
        auto button = std::make_shared<Button>();
        button->on_click = [window] { std::puts(window->title.c_str()); };
        window->buttons.push_back(button);
    }
}

__attribute__((noinline)) void families() {
    auto parent = std::make_shared<Parent>();
    for (int i = 0; i < 3; i++) {
        auto child = std::make_shared<Child>();
        child->parent = parent;
        parent->children[i] = child;
    }
}

__attribute__((noinline)) void scrub() {
    volatile char bytes[65536];
    for (auto &byte : bytes) byte = 0;
}

// All from further down the stack than what is overwritten afterwards.
__attribute__((noinline)) void all(int times) {
    volatile char below[4096];
    below[0] = 0;
    for (int i = below[0]; i < times; i++) {
        closures();
        windows(5 + i);
        families();
    }
}

int main() {
    all(3);
    scrub();
    std::puts("READY");
    std::fflush(stdout);
    for (;;) pause();
}
