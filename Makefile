# make demo   shows coucou at its one job, on a homeserver of its own
# make test   every test, on real PostgreSQL and a real Synapse, which it brings along
# make check  what CI runs
.PHONY: demo test check homeserver

CARGO ?= cargo

demo:
	tests/demo.sh

test: homeserver
	tests/postgres.sh with $(CARGO) test --locked

check:
	.ci/run

homeserver:
	tests/homeserver/synapse.sh install
