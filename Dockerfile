# Runs on a CPU. Written beside the Makefile's rules; it has not been built where it was written.
#   docker build --tag flan-qa .
#   docker run --rm --volume "$PWD/data:/project/data" flan-qa
FROM python:3.11-slim
WORKDIR /project
COPY requirements requirements
RUN pip install --no-cache-dir --require-hashes --no-deps --requirement requirements/build.lock \
    && pip install --no-cache-dir --require-hashes --no-deps --no-build-isolation --use-pep517 \
        --requirement requirements/run.lock \
    && pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu \
        --requirement requirements/torch.txt
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation --editable . \
    && useradd --create-home runner \
    && chown --recursive runner data
USER runner
ENTRYPOINT ["kedro"]
CMD ["run"]
