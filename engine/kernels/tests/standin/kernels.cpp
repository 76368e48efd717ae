// One kernel file as host code: compiled once for each, with KERNEL_FILE naming it.
#include KERNEL_FILE
