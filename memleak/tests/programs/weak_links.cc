// Objects of C++ that point to each other in circles and do not own each other so, or do: twice each. What is lost of
// the former was lost by whoever held it. Prints READY and waits.
#include <cstdio>
#include <functional>
#include <map>
#include <memory>

#include <unistd.h>

#define NOINLINE __attribute__((noipa))

// What is kept of an owner from here on: nothing.
template <class T> static void forget(T *owner) { __asm__ volatile("" : : "r"(owner) : "memory"); }

struct child;
struct parent {
    virtual ~parent() {}
    std::shared_ptr<child> kid;
    char rest[200];
};
struct child {
    virtual ~child() {}
    long number = 1;
    std::weak_ptr<parent> up;
    char rest[300];
};
static NOINLINE void weak_parents() {
    auto made = std::make_shared<parent>();
    made->kid = std::make_shared<child>();
    made->kid->up = made;
    forget(new std::shared_ptr<parent>(made));
}

struct shares_itself : std::enable_shared_from_this<shares_itself> {
    virtual ~shares_itself() {}
    char rest[400];
};
static NOINLINE void from_this() { forget(new std::shared_ptr<shares_itself>(std::make_shared<shares_itself>())); }

struct tree {
    virtual ~tree() {}
    tree *up = nullptr;
    std::unique_ptr<tree> left, right;
    char rest[500];
};
static NOINLINE void trees() {
    tree *root = new tree;
    root->left.reset(new tree);
    root->right.reset(new tree);
    root->left->up = root->right->up = root;
    forget(root);
}

struct empty_list {
    empty_list *next, *before;
    char rest[600];
};
static NOINLINE void lists() {
    auto list = new empty_list;
    list->next = list->before = list;
    forget(list);
}

struct own {
    virtual ~own() {}
    long number = 1;
    std::shared_ptr<own> self;
    char rest[700];
};
static NOINLINE void owns_itself() {
    auto made = std::make_shared<own>();
    made->self = made;
}

struct both : std::enable_shared_from_this<both> {
    virtual ~both() {}
    std::shared_ptr<both> self;
    char rest[800];
};
static NOINLINE void owns_and_shares_itself() {
    auto made = std::make_shared<both>();
    made->self = made;
}

struct later {
    virtual ~later() {}
    std::function<void()> done;
    char rest[900];
};
static NOINLINE void waits_for_itself() {
    auto made = std::make_shared<later>();
    made->done = [made] { std::puts(made->rest); };
}

static NOINLINE long scrub() {
    volatile char all[1 << 16];
    for (size_t i = 0; i < sizeof all; i++) all[i] = 0;
    return all[77];
}

int main() {
    for (auto make : {weak_parents, from_this, trees, lists, owns_itself, owns_and_shares_itself, waits_for_itself}) {
        for (volatile int i = 0; i < 2; i++) make();
        scrub();
    }
    if (write(1, "READY\n", 6) < 0) return 1;
    for (;;) pause();
}
