//! x
fn main() {
    for c in tenantry::api::all_crds() {
        let y = tenantry::api::crd_yaml(&c).unwrap();
        let n = c.metadata.name.unwrap();
        println!("{n} {}", y.len());
        std::fs::create_dir_all("crds").unwrap();
        std::fs::write(format!("crds/{n}.yaml"), y).unwrap();
    }
}
