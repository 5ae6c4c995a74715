# make demo   shows coucou at its one job, on a homeserver of its own
# make test   every test, on real PostgreSQL and a real Synapse, which it brings along
# make check  what CI runs
# make test-faults  the long form of the fault suite: all that can break, and thousands of messages
# make bench  figures, and how they grow
.PHONY: demo test test-faults check bench homeserver tools

CARGO ?= cargo

demo:
	tests/demo.sh

test: homeserver tools
	tests/postgres.sh with $(CARGO) test --locked

test-faults: homeserver
	COUCOU_TEST_FAULTS=long tests/postgres.sh with $(CARGO) test --locked --test scenarios -- --nocapture faults_on_synapse kills_on_fake joins_on_synapse

check:
	.ci/run

bench:
	tests/postgres.sh with $(CARGO) bench --locked --bench load -- $(ARGS)

homeserver:
	tests/homeserver/synapse.sh install

tools:
	tests/fuzz/fuzz.sh install
	tests/prometheus/prometheus.sh install
