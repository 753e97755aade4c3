//! Loading and attaching the BPF programs, writing plans into maps and reading snapshots out. Only this module talks to aya.
