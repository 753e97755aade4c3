// Counts the words of files, and never gives the memory back: the program to point a leak tracer at.
//
//     g++ -fno-omit-frame-pointer -std=c++11 -g wordcount.cc -o wordcount
//
// It asks for a file's name again and again and prints how many words the file has. The end of input ends it.
//
// The leak is one that no review of `new` and `delete` finds, since there are none. A word_counter owns a
// count_printer through a std::shared_ptr, and the printer owns the counter back through another one. When main drops
// its own pointer, the two still hold each other: neither count reaches zero, so both stay, and with them every word
// of the file. A std::weak_ptr in count_printer mends it.

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

class count_printer;

// Reads one file and counts its words.
class word_counter {
public:
    explicit word_counter(const std::string &name) : name_(name) {}

    const std::string &name() const { return name_; }

    void report_to(const std::shared_ptr<count_printer> &printer) { printer_ = printer; }

    // Reads the file into words_; false where it cannot be read, with the reason in errno.
    bool word_count();

    // Prints what word_count found.
    void print() const;

private:
    std::string name_;
    std::vector<std::string> words_;
    std::shared_ptr<count_printer> printer_;

    friend class count_printer;
};

// Prints the count of the counter that owns it.
class count_printer {
public:
    explicit count_printer(const std::shared_ptr<word_counter> &counter) : counter_(counter) {}

    void print() const {
        std::cout << counter_->name() << ": " << counter_->words_.size() << " words" << std::endl;
    }

private:
    std::shared_ptr<word_counter> counter_; // closes the circle
};

bool word_counter::word_count() {
    errno = 0;
    std::ifstream file(name_);
    std::copy(std::istream_iterator<std::string>(file), std::istream_iterator<std::string>(),
              std::back_insert_iterator<std::vector<std::string>>(words_));
    // A folder can be opened and not be read: the stream is bad then. At a file's plain end it is not.
    return file.is_open() && !file.bad();
}

void word_counter::print() const { printer_->print(); }

int main() {
    std::string name;
    while (std::cout << "File name: " << std::flush && std::getline(std::cin, name)) {
        if (name.empty()) {
            continue;
        }
        std::shared_ptr<word_counter> counter = std::make_shared<word_counter>(name);
        counter->report_to(std::make_shared<count_printer>(counter));
        if (counter->word_count()) {
            counter->print();
        } else {
            std::cerr << "wordcount: cannot read " << name << ": "
                      << (errno != 0 ? std::strerror(errno) : "input error") << std::endl;
        }
    }
    std::cout << std::endl;
    return 0;
}
