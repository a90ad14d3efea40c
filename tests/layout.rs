//! What host and kernels share, made of the kernels' files: `build/layout.rs`.

use std::path::Path;

use promptmix::cuda::FATBINS;

#[path = "../build/layout.rs"]
#[allow(dead_code)] // its own build uses all of it
mod layout;

#[path = "common/kernels.rs"]
mod kernels;

use layout::{Layout, Source};

fn of(files: &[(&str, &str)]) -> Result<String, String> {
    let source = |(name, text): &(&str, &str)| Source { name: (*name).to_owned(), text: (*text).to_owned() };
    Layout::of(&files.iter().map(source).collect::<Vec<_>>())?.rust()
}

/// The fields of a struct in Rust, and their types.
fn fields(rust: &str, name: &str) -> Vec<String> {
    let (_, body) = rust.split_once(&format!("pub struct {name} {{\n")).expect("the struct");
    let (body, _) = body.split_once("\n}").expect("its end");
    let fields = body.lines().filter_map(|line| line.strip_prefix("pub "));
    fields.map(|field| field.trim_end_matches(',').to_owned()).collect()
}

#[test]
fn every_kind_of_field_keeps_its_name_place_and_type() {
    let header = "namespace n {\nconstexpr int FEW = 2;\nstruct Step { float rate; uint32_t seeds[1]; };\n\
                  struct Mask { const Step* step; uint32_t site; uint32_t padding; };\n}";
    let text = r#"
        #include "mask.cuh"
        using namespace n;
        struct KernelArguments {
            const int* batch;             // a comment, with a semicolon; and a brace {
            const void* const rows[2 * FEW];
            bf16* __restrict__ copy; /* and
            more */ Mask mask;
            int64_t length;
            unsigned long long updates;
            long long offset;
            uint64_t bits;
            double rate;
            int type;
            unsigned count;
            uint32_t grid[FEW][FEW + 1];
            float epsilon;
            unsigned int last;
        };
        extern "C" __global__ void __launch_bounds__(128, (2)) kernel(const __grid_constant__ KernelArguments arguments) { "}"; }
    "#;
    let rust = of(&[("mask.cuh", header), ("kernel.cu", text)]).expect("a layout");
    let expected = [
        "batch: u64",
        "rows: [u64; 4]",
        "copy: u64",
        "mask: super::mask::Mask",
        "length: i64",
        "updates: u64",
        "offset: i64",
        "bits: u64",
        "rate: f64",
        "r#type: i32",
        "count: u32",
        "grid: [[u32; 3]; 2]",
        "epsilon: f32",
        "last: u32",
    ];
    assert_eq!(fields(&rust, "KernelArguments"), expected);
    assert_eq!(fields(&rust, "Mask"), ["step: u64", "site: u32", "padding: u32"]);
    assert_eq!(fields(&rust, "Step"), ["rate: f32", "seeds: [u32; 1]"], "what lies behind a pointer too");
    assert!(rust.contains("impl super::Arguments for KernelArguments {}"));
    assert!(!rust.contains("impl super::Arguments for Mask"), "no kernel takes a mask alone");
}

#[test]
fn fields_that_change_places_change_them_in_rust() {
    let order = |fields: &str| {
        let text = format!("struct OneArguments {{ {fields} }};");
        self::fields(&of(&[("one.cu", &text)]).expect("a layout"), "OneArguments")
    };
    assert_eq!(order("int width; int depth;"), ["width: i32", "depth: i32"]);
    assert_eq!(order("int depth; int width;"), ["depth: i32", "width: i32"]);
}

#[test]
fn constants_and_enums_are_computed() {
    let text = "constexpr int A = 3, B = 2 * (A + 1) - 10 / 3 % 2;\nconstexpr float NONE = 1.5f;\n\
                constexpr int BELOW = -1, MASK = 0x10u << 2, THOUSAND = 1'000, HALF = THOUSAND >> 1;\n\
                void f() { constexpr int WITHIN = 7; }\n\
                template <int N> struct Many { int of[N]; };\n\
                enum Kind : int { NO_ROW = BELOW, ROW, LAST_ROW = B, AFTER };\n\
                constexpr int FIRST = LAST_ROW + 1;";
    let rust = of(&[("one.cu", text)]).expect("a layout");
    for line in [
        "pub const A: usize = 3;",
        "pub const B: usize = 7;",
        "pub const BELOW: i32 = -1;",
        "pub const MASK: usize = 64;",
        "pub const HALF: usize = 500;",
        "NoRow = -1,",
        "Row = 0,",
        "LastRow = 7,",
        "After = 8,",
        "pub const ALL: [Self; 4] = [Self::NoRow, Self::Row, Self::LastRow, Self::After, ];",
        "pub const FIRST: usize = 8;",
    ] {
        assert!(rust.lines().any(|found| found == line), "{line} in:\n{rust}");
    }
    for none in ["NONE", "WITHIN", "Many"] {
        assert!(!rust.contains(none), "{none} in:\n{rust}");
    }
}

#[test]
fn what_a_name_means_depends_on_the_file_and_what_it_includes() {
    let files = [
        ("one.cu", "#include \"head.cuh\"\nconstexpr int ROWS = HEAD;"),
        ("two.cu", "constexpr int ROWS = 5;"),
        ("head.cuh", "constexpr int HEAD = 4;"),
    ];
    let rust = of(&files).expect("a layout");
    assert!(rust.contains("pub const ROWS: usize = 4;") && rust.contains("pub const ROWS: usize = 5;"));
    let error = of(&[files[0]]).expect_err("no header");
    assert!(error.contains("kernels/one.cu:2: expected") && error.ends_with("found HEAD"), "{error}");
}

#[test]
fn what_is_not_understood_is_refused_with_its_file_and_line() {
    let within = |field: &str| format!("struct OneArguments {{\n    int first;\n    {field}\n}};");
    let cases = [
        (within("short width;"), 3, "found short"),
        (within("bool causal;"), 3, "found bool"),
        (within("Unknown of;"), 3, "found Unknown"),
        (within("int a, b;"), 3, "expected ;, found ,"),
        (within("int a = 1;"), 3, "expected ;, found ="),
        (within("int rows() const { return 1; }"), 3, "expected ;, found ("),
        (within("int bits : 3;"), 3, "expected ;, found :"),
        (within("int some[];"), 3, "expected an integer"),
        (within("int some[0];"), 3, "a length of at least 1"),
        (within("int some[MANY];"), 3, "found MANY"),
        (within("int some[sizeof(int)];"), 3, "found sizeof"),
        (within("float* a, *b;"), 3, "expected ;, found ,"),
        (within("int self;"), 3, "a name that Rust can have"),
        (within("const int* batch;"), 3, "4 bytes of padding"),
        (within("int second; int* batch; int last;"), 1, "add a field `int padding`"),
        (within("OneArguments of;"), 1, "a struct that does not hold itself"),
        ("struct OneArguments : Base { int a; };".into(), 1, "expected {, found :"),
        ("struct OneArguments {};".into(), 1, "OneArguments of a multiple of 1 bytes"),
        ("\nenum class Kind { A };".into(), 2, "a plain enum"),
        ("enum Kind : short { A };".into(), 1, "expected int, found short"),
        ("enum Kind { };".into(), 1, "an enum with a value"),
        ("constexpr long A = 1;".into(), 1, "`constexpr int`, or float or double, found long"),
        ("constexpr int A = 1 / 0;".into(), 1, "an integer that can be computed"),
        ("constexpr int A = 1 << 31;".into(), 1, "an integer of 32 bits"),
        ("constexpr int A = A + A;".into(), 1, "found A"),
        ("constexpr int A = 010;".into(), 1, "expected an integer, found 010"),
        ("constexpr int A = (1;".into(), 1, "expected )"),
        ("constexpr int A = 1 2;".into(), 1, "the end of an integer expression, found 2"),
        ("constexpr int A = ;".into(), 1, "expected an integer"),
        ("constexpr int A = 1".into(), 1, "expected ,"),
        ("__global__ void k(int width) {}".into(), 1, "a struct named ..Arguments, found int"),
        ("__global__ void k(OneArguments a) {}".into(), 1, "found OneArguments"),
        (
            "struct OneArguments { int a; };\n__global__ void k(OneArguments* a) {}".into(),
            2,
            "by value, found *",
        ),
        (
            "struct OneArguments { int a; };\n__global__ void k(OneArguments a, int b) {}".into(),
            2,
            "expected ), found ,",
        ),
        ("\n/* no end".into(), 2, "expected */"),
        ("\nextern \"C".into(), 2, "the end of a string"),
        ("void f() {\n".into(), 1, "expected }"),
    ];
    for (text, line, says) in cases {
        let error = of(&[("one.cu", &text)]).expect_err(&text);
        assert!(error.starts_with(&format!("kernels/one.cu:{line}: expected")), "{text}\n{error}");
        assert!(error.contains(says), "{text}\n{error}");
    }
    let twice = of(&[("one.cu", "constexpr int A = 1;"), ("one.cuh", "constexpr int A = 1;")]);
    assert!(twice.expect_err("one module").contains("expected A in one file of that stem"));
}

#[test]
fn text_that_ends_anywhere_is_an_error_or_a_layout_and_no_panic() {
    for source in layout::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")).expect("the kernels") {
        let ends = source.text.char_indices().map(|(end, _)| end);
        for end in ends.filter(|end| *end < 4_000) {
            let _ = of(&[("one.cu", &source.text[..end])]);
        }
    }
}

/// Bytes of what each kernel takes, by its PTX.
fn taken(ptx: &str) -> Vec<(&str, usize)> {
    let entries = ptx.split(".entry ").skip(1).map(|entry| {
        let (name, rest) = entry.split_once('(').expect("parameters");
        let (parameters, _) = rest.split_once(')').expect("their end");
        let (_, bytes) = parameters.split_once('[').expect("one struct");
        (name.trim(), bytes.trim().trim_end_matches(']').parse().expect("a number of bytes"))
    });
    entries.collect()
}

#[test]
fn kernels_take_as_many_bytes_as_the_host_gives() {
    if !kernels::are_built() {
        return;
    }
    let sources = layout::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")).expect("the kernels");
    let layout = Layout::of(&sources).expect("a layout");
    let mut compared = 0;
    for (file, fatbin) in FATBINS {
        let start = fatbin.windows(9).position(|window| window == b".version ").expect("PTX, uncompressed");
        let end = fatbin[start..].iter().position(|&byte| byte == 0).map_or(fatbin.len(), |end| start + end);
        let ptx = String::from_utf8_lossy(&fatbin[start..end]);
        for (kernel, bytes) in taken(&ptx) {
            let known: Vec<usize> = layout
                .kernels()
                .filter(|(of, name, _)| of == file && (*name == kernel || kernel.starts_with("gemm_")))
                .map(|(_, _, bytes)| bytes)
                .collect();
            // Those that a macro makes take what the others of their file take.
            assert!(known.contains(&bytes), "{file}: {kernel} takes {bytes} bytes, the host gives {known:?}");
            compared += 1;
        }
    }
    assert!(compared > 50, "{compared} kernels");
}
