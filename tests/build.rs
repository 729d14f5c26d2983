//! Links the hostile guest as a kernel, and generates the messages of `proto/cri.proto`, which is
//! Kubernetes's own file (k8s.io/cri-api, pkg/apis/runtime/v1/api.proto), without protoc.

fn main() {
    // No process's start, no relocations at the start: a file that is loaded where it says, from
    // 1 MiB on.
    for argument in [
        "-nostartfiles",
        "-no-pie",
        "-Wl,--image-base=0x100000",
        "-Wl,--build-id=none",
    ] {
        println!("cargo::rustc-link-arg-bin=rvm-hostile-guest={argument}");
    }
    println!("cargo::rerun-if-changed=proto/cri.proto");
    protobuf_codegen::Codegen::new()
        .pure()
        .include("proto")
        .input("proto/cri.proto")
        .customize(protobuf_codegen::Customize::default().lite_runtime(true))
        .cargo_out_dir("cri")
        .run()
        .unwrap();
}
