// One session of TVM's RPC, on a connection that somebody else has accepted: what a device without Python does.
//
//   session DESCRIPTOR FOLDER
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>

#include <cstdlib>
#include <string>

using namespace tvm::ffi;

int main(int, char** arguments) {
  const std::string folder = std::string(arguments[2]) + "/";
  Function::SetGlobal("tvm.rpc.server.workpath",
                      Function::FromTyped([folder](const String& name) { return String(folder + name.c_str()); }));
  Function::SetGlobal("tvm.rpc.server.load_module",
                      Function::FromTyped([folder](const String& name) { return Module::LoadFromFile(folder + name.c_str()); }));
  Function::GetGlobalRequired("rpc.ServerLoop")(std::atoi(arguments[1]));
}
