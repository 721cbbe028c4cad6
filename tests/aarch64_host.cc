// Runs functions of a library that TVM's virtual machine executes: what a program on a device does, without Python.
//
//   host LIBRARY [FUNCTION OPERANDS OPERAND... RESULT]...
//
// A file holds a tensor: int64 words for the type's code and bits, the number of axes, and each extent, then the data.
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <cstdlib>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

using namespace tvm::ffi;

struct Heap {
  void AllocData(DLTensor* tensor) { tensor->data = std::aligned_alloc(64, (GetDataSize(*tensor) / 64 + 1) * 64); }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

Tensor Read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  auto word = [&file] {
    int64_t value = 0;
    file.read(reinterpret_cast<char*>(&value), sizeof value);
    return value;
  };
  DLDataType type{static_cast<uint8_t>(word()), 0, 1};
  type.bits = static_cast<uint8_t>(word());
  std::vector<int64_t> shape(word());
  for (int64_t& extent : shape) extent = word();
  Tensor tensor = Tensor::FromNDAlloc(Heap{}, Shape(shape), type, DLDevice{kDLCPU, 0});
  file.read(static_cast<char*>(tensor.data_ptr()), GetDataSize(*tensor.GetDLTensorPtr()));
  if (!file) throw std::runtime_error(std::string("cannot read ") + path);
  return tensor;
}

void Write(const Tensor& tensor, const char* path) {
  std::ofstream file(path, std::ios::binary);
  std::vector<int64_t> words{tensor.dtype().code, tensor.dtype().bits, tensor.ndim()};
  for (int64_t extent : tensor.shape()) words.push_back(extent);
  file.write(reinterpret_cast<const char*>(words.data()), words.size() * sizeof(int64_t));
  file.write(static_cast<const char*>(tensor.data_ptr()), GetDataSize(*tensor.GetDLTensorPtr()));
  if (!file.flush()) throw std::runtime_error(std::string("cannot write ") + path);
}

int main(int count, char** arguments) {
  constexpr int kPooled = 2;  // the allocator
  Module machine =
      Module::LoadFromFile(arguments[1])->GetFunction("vm_load_executable", true).value()().cast<Module>();
  machine->GetFunction("vm_initialization", true)
      .value()(static_cast<int>(kDLCPU), 0, kPooled, static_cast<int>(kDLCPU), 0, kPooled);
  for (int at = 2; at < count;) {
    Function function = machine->GetFunction(arguments[at++], true).value();
    std::vector<Tensor> operands;
    for (int left = std::atoi(arguments[at++]); left > 0; --left) operands.push_back(Read(arguments[at++]));
    std::vector<AnyView> packed(operands.begin(), operands.end());
    Any result;
    function.CallPacked(packed.data(), static_cast<int32_t>(packed.size()), &result);
    Write(result.cast<Tensor>(), arguments[at++]);
  }
}
