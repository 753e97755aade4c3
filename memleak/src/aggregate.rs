//! A snapshot, filtered, grouped by stack, and put in order: still addresses, no names.
