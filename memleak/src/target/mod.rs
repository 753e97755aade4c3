//! What is traced: processes, a command to start, and the objects they have mapped.
