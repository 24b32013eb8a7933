//! A small table of alloys and a configuration of the recipe `alloy` for it, two seconds from the
//! table to predictions.

/// A tiny regression. Tests speak of its lines by number.
pub const CONFIG: &str = "\
recipe: alloy
run: {name: t, output_dir: out, device: cpu}
dataset:
  dataset_location: alloys.csv
  target: YS
  val_size: 12
text: {element_facts: false}
model:
  hidden_size: 32
  num_hidden_layers: 2
  num_attention_heads: 2
  intermediate_size: 32
  vocab_size: 300
training:
  max_steps: 4
  eval_steps: 2
  evaluation_strategy: steps
  lr: 1.0e-3
  per_device_train_batch_size: 4
  max_tokens_per_batch: 512
  micro_batches_per_step: 4
distributed:
  threads_per_rank: 1
";

/// Rows of the table beside [`CONFIG`]; number i, from 0, stands on line i + 2.
pub const ROWS: usize = 48;

/// Column names of [`table`].
pub const HEADER: &str = "id,FORMULA,PROPERTY: Processing method,PROPERTY: YS (MPa),\
    PROPERTY: Test temperature (K),PROPERTY: Microstructure\n";

/// Random alloys `a0`…: one of 24 amounts of the first of three elements, whole numbers of MPa
/// between 100 and 999, and one of three microstructures.
pub fn table(rows: usize) -> String {
    let mut csv = String::from(HEADER);
    let mut state = 1u64;
    let mut draw = |below: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    for i in 0..rows {
        let elements = ["Al", "Co", "Cr", "Fe", "Ni", "Ti", "Mo"];
        let at = draw(5);
        let [a, b, c] = [elements[at], elements[at + 1], elements[at + 2]];
        let process = ["CAST", "ANNEAL", "POWDER"][draw(3)];
        let phase = ["FCC", "BCC", "FCC+BCC"][draw(3)];
        let (ys, temperature) = (100 + draw(900), 300 + 100 * draw(4));
        csv += &format!("a{i},{a}{} {b}1 {c}2,{process},{ys},{temperature},{phase}\n", i % 24 + 1);
    }
    csv
}
