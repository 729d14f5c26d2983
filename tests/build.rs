//! Generates the messages of `proto/cri.proto`, which is Kubernetes's own file (k8s.io/cri-api,
//! pkg/apis/runtime/v1/api.proto), without protoc.

fn main() {
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
