# Makefile
#
# The extension is built by PGXS, for the PostgreSQL of PG_CONFIG.  `make demo`
# and `make test` bring their own set-up and so work before PGXS is installed:
# nothing outside the last section needs it.  `make help` lists the targets.

EXTENSION = onside_attribution
MODULE_big = onside_attribution
PGFILEDESC = "onside_attribution - reports committed purchases to the Onside attribution API"

DATA = $(sort $(wildcard onside_attribution--*.sql))
OBJS = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c src/*/*.c)))

# `make installcheck` has to pass on any running server, preloaded or not, so
# it runs these alone.  The specs need workers: check-isolation.
REGRESS = $(patsubst sql/%.sql,%,$(sort $(wildcard sql/*.sql)))
SPECS = $(patsubst test/specs/%.spec,%,$(sort $(wildcard test/specs/*.spec)))
# Those that take longest, most of it waiting, begin first: a run is not to end
# with one of them alone.
LONG = 329 268 050 371 283 285 225 328 354 326 245 318 281 223 243 311 261 260 286 231 242 021
LONG_TAP = $(wildcard $(LONG:%=test/t/%_*.pl))
TAP = $(LONG_TAP) $(filter-out $(LONG_TAP),$(sort $(wildcard test/t/*.pl)))

PG_CPPFLAGS = -I$(srcdir)/src
# On macOS, uuid is in the library that everything is linked with.
SHLIB_LINK = -lcurl $(if $(filter darwin,$(PORTNAME)),,-luuid)

# The sandbox API is for the tests of shops, too: docs/sandbox.md.
SCRIPTS_built = onside-sandbox

# Functions that PostgreSQL or curl calls have parameters that not all need.
# From the second line on it is what PostgreSQL compiles contrib with; not each version's
# pg_config hands out all of it.
PG_CFLAGS = -Wall -Wextra -Wno-unused-parameter \
	-Wmissing-prototypes -Wpointer-arith -Wendif-labels -Wmissing-format-attribute \
	-Wimplicit-fallthrough=3 -Wcast-function-type -Wshadow=compatible-local -Wformat-security
ifdef WERROR
PG_CFLAGS += -Werror
endif
# pg_config hands out the flags of the compiler that built PostgreSQL, and its
# headers have attributes for that one, and casts of functions.
PG_CFLAGS += $(if $(findstring clang,$(CC)),-Wno-unknown-warning-option \
	-Wno-ignored-optimization-argument -Wno-unused-command-line-argument \
	-Wno-ignored-attributes -Wno-cast-function-type-strict)

EXTRA_CLEAN = $(OBJS:.o=.bc) test/unit/build test/sim/build output_iso tmp_check tmp_check_iso \
	test/sandbox/__pycache__ test/demo/__pycache__

PG_CONFIG ?= pg_config
# Debian has PGXS in one package and the headers in another.
ifneq ($(wildcard $(shell $(PG_CONFIG) --includedir-server 2>/dev/null)/postgres.h),)
PGXS := $(wildcard $(shell $(PG_CONFIG) --pgxs))
endif

.DEFAULT_GOAL := all

# ---------------------------------------------------------------------------
# The two commands, and what they consist of
# ---------------------------------------------------------------------------

.PHONY: help rooms demo test test-all clean-chroots test-assertions test-valgrind bench \
	check-quick check-metrics check-languages check-unit check-sim check-sandbox check-isolation check-tap

help:
	@echo 'make                  build the extension'
	@echo 'make install          install it into PostgreSQL (DESTDIR=... to stage it)'
	@echo 'make demo             see it work: a throwaway server, the sandbox API, purchases'
	@echo 'make test             build and run every test, on throwaway servers'
	@echo 'make rooms            the files of src/, and what each is for'
	@echo 'make check-quick      what most mistakes fail in, in a minute'
	@echo 'make test-all         the same with PostgreSQL 15, 17, 18 and 19, in chroots; as root'
	@echo 'make clean-chroots    remove those chroots'
	@echo 'make test-assertions  the same on a PostgreSQL with assertions, built for that'
	@echo 'make test-valgrind    the worker and a recording backend under valgrind'
	@echo 'make check-metrics    monitoring/, with the real Prometheus and postgres_exporter'
	@echo 'make check-languages  the programs of docs/languages.md, with all the clients; as root'
	@echo 'make installcheck     the SQL tests, on a running server that has it installed'
	@echo 'make check-unit       the tests of the pure parts, without a server'
	@echo 'make check-sim        simulated days for what decides about sending: DAYS=20000 FROM=1'
	@echo 'make check-sandbox    the tests of the sandbox API'
	@echo 'make check-isolation  the isolation specs, on a running server that preloads it'
	@echo 'make check-tap        the TAP tests, with it installed; not as root'
	@echo 'make bench            measure it: BENCH="recording draining" SCALE=full (test/bench)'
	@echo 'make clean            remove what was built'
	@echo 'make dist             the release as a zip, for PGXN, of the last commit'
	@echo 'make deb              Debian packages of this tree'
	@echo 'make check-rpm        builds the packages of packaging/rpm, and looks into them'
	@echo 'make image            an image of PostgreSQL with it: docs/containers.md'
	@echo 'make check-image      builds one and tries it; as root, with buildah'
	@echo 'make check-deb        a fresh Debian follows README.md from the package to an event; as root'
	@echo
	@echo 'PG_CONFIG=...         the PostgreSQL to build for and test with (15 or later)'
	@echo 'WERROR=1              warnings are errors'
	@echo 'make test STEPS="unit tap" TAP=test/t/010_name.pl  just these'
	@echo 'make test VERSIONS="15 18"  with these versions of PostgreSQL; see test-all'
	@echo 'make test KEEP=1      keep the directory with the logs'

# A header's purpose may take two lines.
rooms:
	@cd $(srcdir) && for file in src/*/*.c src/*.c; do sed -n "4,5{s|^ \*\t\t||;/^ \*$$/d;p}" "$$file" | \
		paste -sd ' ' | sed "s|^|$$file: |"; done

# What the command line or the environment says is for these scripts too; the
# default of PG_CONFIG is not, they look for a PostgreSQL themselves.
demo:
	@test/setup/prepare demo
	@test/setup/throwaway test/demo/demo

ifdef VERSIONS
test:
	@test/setup/test-versions $(VERSIONS)
else
test:
	@test/setup/prepare test
	@test/setup/throwaway test/run
endif

check-quick:
	@test/setup/prepare test
	@STEPS='gcc unit regress tap' TAP='test/t/001_first_event.pl test/t/095_house.pl' \
		test/setup/throwaway test/run

test-all:
	@test/setup/test-versions 15 17 18 19

clean-chroots:
	@test/setup/chroot --remove

bench:
	@test/setup/prepare demo
	@test/bench/bench

# On a PostgreSQL that checks itself, which is built first where it is missing.
test-assertions test-valgrind:
	@test/setup/prepare $@
	@PG_CONFIG="$$(test/setup/checking-postgres)" && export PG_CONFIG && \
		test/setup/throwaway $(if $(findstring valgrind,$@),test/instruments/valgrind,test/run)

# Prometheus is no small package: `make test` runs this where it is installed.
check-metrics:
	@test/setup/prepare metrics
	@STEPS='gcc tap' TAP=test/t/250_metrics.pl test/setup/throwaway test/run

# Fifteen clients and what compiles them, which is too much for `make test`.
check-languages:
	@test/setup/prepare languages
	@ONSIDE_TEST_NODE="$$(test/setup/node-modules)" && export ONSIDE_TEST_NODE && \
		ONSIDE_TEST_LANGUAGES=all STEPS='gcc tap' TAP=test/t/380_languages.pl \
		test/setup/throwaway test/run

check-unit:
	$(MAKE) -C test/unit check PG_CONFIG='$(PG_CONFIG)'

check-sim:
	$(MAKE) -C test/sim check PG_CONFIG='$(PG_CONFIG)'

check-sandbox:
	cd test/sandbox && python3 -B -m unittest

# ---------------------------------------------------------------------------
# With PGXS
# ---------------------------------------------------------------------------

ifneq ($(PGXS),)

# Debian's PostgreSQL wants bitcode from its own clang.  Without that clang,
# do without the bitcode.
PGXS_CLANG := $(shell sed -n 's/^CLANG *= *//p' '$(dir $(PGXS))../Makefile.global')
ifeq ($(shell command -v '$(PGXS_CLANG)' 2>/dev/null),)
override with_llvm = no
endif

include $(PGXS)

# PGXS on Debian does not track headers.
$(OBJS) $(OBJS:.o=.bc): $(wildcard $(srcdir)/src/*.h $(srcdir)/src/*/*.h)

onside-sandbox: $(srcdir)/test/sandbox/sandbox_api.py
	$(INSTALL_SCRIPT) $< $@

.PHONY: install-man uninstall-man
install: install-man
uninstall: uninstall-man

install-man:
	$(MKDIR_P) '$(DESTDIR)$(mandir)/man1'
	$(INSTALL_DATA) '$(srcdir)/test/sandbox/onside-sandbox.1' '$(DESTDIR)$(mandir)/man1/'

uninstall-man:
	rm -f '$(DESTDIR)$(mandir)/man1/onside-sandbox.1'

pgxs_test = $(abspath $(dir $(PGXS))../test)

check-isolation:
	$(pg_isolation_regress_installcheck) --inputdir='$(srcdir)/test' \
		--dbname=onside_isolation $(ISOLATION_OPTS) $(SPECS)

# The environment that PostgreSQL::Test::Cluster asks for, in the spelling of
# 15 and in that of 16 and later.
check-tap:
	@test -n '$(TAP)' || { echo 'there is no TAP test'; exit 1; }
	rm -rf tmp_check
	mkdir -p tmp_check/log
	env -u LC_ALL -u LANGUAGE LC_MESSAGES=C '$(bindir)/initdb' --no-sync --auth=trust \
		--pgdata=tmp_check/initdb_template >tmp_check/log/initdb_template
	ONSIDE_INITDB_TEMPLATE='$(CURDIR)/tmp_check/initdb_template' \
	PATH="$(bindir):$$PATH" PG_CONFIG='$(PG_CONFIG)' \
	PG_REGRESS='$(pgxs_test)/regress/pg_regress' \
	TESTDIR='$(CURDIR)' TESTDATADIR='$(CURDIR)/tmp_check' \
	TESTLOGDIR='$(CURDIR)/tmp_check/log' PG_TEST_PORT_DIR='$(CURDIR)/tmp_check' \
	prove -I '$(pgxs_test)/perl' -I test/perl $(PROVE_FLAGS) $(TAP)

else

.PHONY: all install uninstall installcheck clean

all install uninstall installcheck check-isolation check-tap:
	@echo >&2 'PostgreSQL with its development files is needed; $(PG_CONFIG) knows of none.'
	@echo >&2 'On Debian and Ubuntu it is postgresql-server-dev-NN, besides libcurl4-openssl-dev'
	@echo >&2 'and uuid-dev; "test/setup/prepare demo" installs them, and "make demo" too.'
	@exit 1

clean:
	rm -rf onside_attribution.so onside-sandbox $(OBJS) results regression.diffs regression.out $(EXTRA_CLEAN)

endif

# ---------------------------------------------------------------------------
# Releases
# ---------------------------------------------------------------------------

# The version is META.json's; test/t/092_release.pl compares all others with it.
release = onside_attribution-$(shell sed -n 's/^   "version": "\(.*\)",$$/\1/p' META.json)

.PHONY: dist deb check-deb check-rpm image check-image

dist:
	git archive --format=zip --prefix='$(release)/' --output='$(release).zip' HEAD
	@echo '$(release).zip'

deb:
	@test/setup/deb

check-deb:
	@test/setup/check-deb

# What this machine cannot do is no failure of these two.
check-rpm:
	@test/setup/check-rpm || [ $$? = 77 ]

image:
	@test/setup/image

check-image:
	@test/setup/check-image || [ $$? = 77 ]
