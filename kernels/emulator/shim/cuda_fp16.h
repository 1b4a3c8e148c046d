// Found in front of CUDA's own header when a kernel runs on the CPU.
#pragma once
#include "../half.hpp"
