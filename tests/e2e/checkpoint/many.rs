//! One checkpoint from which a container goes on again and again.

use std::time::Instant;

use rvm_tests::Bundle;

use super::{COUNT, end, restore, save, start, wait_for_more, world_for_long};

/// How often a container is restored from one checkpoint.
const MANY_RESTORES: usize = 1000;

#[test]
fn a_thousand_restores_in_a_row_leave_nothing() {
    let Some(rvm) = world_for_long() else { return };
    let bundle = Bundle::shell(COUNT);
    let image = rvm.path("image");
    let output = start(&rvm, &bundle, "box");
    wait_for_more(&output, 0);
    save(&rvm, "box", &image, &[]);
    let begin = Instant::now();
    for round in 1..=MANY_RESTORES {
        let output = restore(&rvm, &bundle, &image, "box");
        wait_for_more(&output, 0);
        end(&rvm, "box");
        if round % 100 == 0 {
            rvm.assert_nothing_left();
            println!("{round} restores in {:?}", begin.elapsed());
        }
    }
}
