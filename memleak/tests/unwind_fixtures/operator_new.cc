// A block whose site is the direct caller of operator new.
struct Node {
    int value;
    Node *next;
};

Node *volatile kept;

__attribute__((noinline, noclone)) void direct_caller(int value) {
    kept = new Node{value, nullptr};
}

int main() {
    direct_caller(1);
    return kept == nullptr;
}
